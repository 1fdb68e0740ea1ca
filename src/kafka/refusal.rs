//! Reasons why Kafka and this client cannot work together, however long the client waits, and their remedies.
//!
//! librdkafka reports the reason as text only. This module searches that text for the words of librdkafka 2.12, OpenSSL 3 and the
//! broker's alerts. A text that is not recognised is no refusal, and the service continues to try.
//!
//! Must never show a secret: only names, addresses, and the words of librdkafka and the broker.

use super::certificate;
use crate::config::{Assignment, Config, GroupProtocol, Mechanism};
use crate::platform::advice::Advice;
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaErrorCode;

/// A refusal that does not end by waiting. `reason` has librdkafka's words.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the field is described above")]
pub enum Refusal {
    /// The broker does not accept this user, password or mechanism.
    Login { reason: String },
    /// This client does not trust the broker's certificate.
    Untrusted { reason: String },
    /// The broker does not trust the client's certificate, or requires one.
    ClientCertificate { reason: String },
    /// There is no TLS connection with this broker, for another reason.
    Tls { reason: String },
    /// An HTTP server answers in place of a broker.
    Http { reason: String },
    /// The group's members assign partitions in another way than this member.
    Protocol,
    /// The user may not read the topic, or may not even see it.
    Topic,
    /// The user may not read the group.
    Group,
    /// The user may not do something that requires a right on the cluster.
    Cluster,
}

/// The last errors of a client.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientErrors {
    /// The last refusal, if there was one.
    pub refusal: Option<Refusal>,
    /// Last words of librdkafka.
    pub reason: Option<String>,
}

impl Refusal {
    /// Returns the refusal in an answer to a request, if it is one.
    pub fn from_error(error: &KafkaError) -> Option<Refusal> {
        Refusal::of(super::code(error), "")
    }

    /// Returns the refusal in an error and librdkafka's words for it, if it is one.
    pub fn of(code: Option<RDKafkaErrorCode>, reason: &str) -> Option<Refusal> {
        use RDKafkaErrorCode as Code;
        let owned = || reason.to_owned();
        match code? {
            Code::Authentication | Code::SaslAuthenticationFailed | Code::UnsupportedSASLMechanism => {
                Some(Refusal::Login { reason: owned() })
            }
            Code::TopicAuthorizationFailed => Some(Refusal::Topic),
            Code::GroupAuthorizationFailed => Some(Refusal::Group),
            Code::ClusterAuthorizationFailed => Some(Refusal::Cluster),
            Code::InconsistentGroupProtocol => Some(Refusal::Protocol),
            _ if is_http(reason) => Some(Refusal::Http { reason: owned() }),
            // With TLS 1.3 the broker checks the client's certificate only after the handshake. Its alert then ends the
            // connection.
            Code::SSL | Code::BrokerTransportFailure if reason.contains(" alert ") => {
                Some(Refusal::of_alert(reason).unwrap_or(Refusal::Tls { reason: owned() }))
            }
            Code::SSL if reason.contains("certificate") && reason.contains("verif") => {
                Some(Refusal::Untrusted { reason: owned() })
            }
            // The network's own failures during a handshake carry the same code.
            Code::SSL if reason.contains("SSL transport error") || reason.contains("Disconnected") => None,
            Code::SSL => Some(Refusal::Tls { reason: owned() }),
            _ => None,
        }
    }

    fn of_alert(reason: &str) -> Option<Refusal> {
        let alert = reason.split(" alert ").nth(1)?;
        let ours = ["certificate", "bad certificate", "unknown ca", "unsupported certificate", "access denied"];
        let about_ours = ours.iter().any(|name| alert.starts_with(name));
        about_ours.then(|| Refusal::ClientCertificate { reason: reason.to_owned() })
    }

    /// Returns [`Self::advice`] as one text.
    pub fn describe(&self, config: &Config) -> String {
        self.advice(config).to_string()
    }

    /// Returns the refusal and its remedy. It may ask the broker for its certificate, for a second at most.
    pub fn advice(&self, config: &Config) -> Advice {
        let kafka = &config.kafka;
        let brokers = &kafka.brokers;
        match self {
            Refusal::Login { reason } => {
                let user = kafka.sasl.username.as_deref().unwrap_or_default();
                let mechanism = kafka.sasl.mechanism.map_or("no mechanism", Mechanism::name);
                let said = cut(reason);
                Advice::new(
                    format!("Kafka at {brokers} refuses to log in the user \"{user}\" with {mechanism}: {said}"),
                    "Set kafka.sasl.username, kafka.sasl.password and kafka.sasl.mechanism to those of a user that exists there",
                )
            }
            Refusal::Untrusted { reason } => certificate::advice(reason, kafka),
            Refusal::ClientCertificate { reason } => {
                let said = cut(reason);
                match &kafka.tls.cert_file {
                    None => Advice::new(
                        format!("Kafka at {brokers} wants a client certificate: {said}"),
                        "Set kafka.tls.cert_file and kafka.tls.key_file to one that its authority has signed",
                    ),
                    Some(cert_file) => Advice::new(
                        format!("Kafka at {brokers} refuses the client certificate in {cert_file}: {said}"),
                        "Set kafka.tls.cert_file and kafka.tls.key_file to one that its authority has signed and that has not expired",
                    ),
                }
            }
            Refusal::Tls { reason } => Advice::new(
                format!("no TLS connection to Kafka at {brokers}: {}", cut(reason)),
                "Check that kafka.brokers names a listener with TLS",
            ),
            Refusal::Http { reason } => Advice::new(
                format!("an HTTP server answers where Kafka should: {}", address(reason).unwrap_or(brokers)),
                "Check that kafka.brokers, and what the brokers' advertised.listeners name, are ports of Kafka",
            ),
            Refusal::Protocol => other_protocol(config, "another way than this member's"),
            Refusal::Topic => {
                let (user, topic) = (principal(config), &kafka.topics.events);
                Advice::new(
                    format!(
                        "the Kafka user {user} may not read the topic {topic}, or it does not exist. Kafka tells that only to users who may \
                         describe it"
                    ),
                    format!("As an administrator run: {}", grant(config, "topic", topic)),
                )
            }
            Refusal::Group => {
                let (user, group) = (principal(config), &kafka.group_id);
                Advice::new(
                    format!(
                        "the Kafka user {user} may not read the group {group}, which joining it and committing take"
                    ),
                    format!("As an administrator run: {}", grant(config, "group", group)),
                )
            }
            Refusal::Cluster => Advice::new(
                format!("the Kafka user {} lacks a right on the cluster at {brokers}", principal(config)),
                "Look for the denied operation in the broker's authorizer log",
            ),
        }
    }
}

/// librdkafka takes the first bytes of an answer for its length. These bytes are `HTTP`.
const HTTP_AS_SIZE: &str = "Invalid response size 1213486160 ";

/// True if the answer begins with `HTTP`.
fn is_http(reason: &str) -> bool {
    reason.contains(HTTP_AS_SIZE)
}

/// Returns `host:port` from librdkafka's `ssl://host:port/1: …` or `host:port/bootstrap: …`.
pub(super) fn address(reason: &str) -> Option<&str> {
    let named = |word: &&str| word.contains(':') && word.contains('/');
    let name = reason.split_whitespace().map(|word| word.trim_end_matches(':')).find(named)?;
    let name = name.split_once("://").map_or(name, |(_, rest)| rest);
    name.split('/').next().filter(|address| address.contains(':'))
}

/// Returns the problem of a group that assigns partitions in another way, and the remedy.
pub fn other_protocol(config: &Config, theirs: &str) -> Advice {
    let kafka = &config.kafka;
    let ours = match (kafka.group_protocol, kafka.assignment) {
        (GroupProtocol::Consumer, _) => "kafka.group_protocol = consumer",
        (GroupProtocol::Classic, Assignment::CooperativeSticky) => "kafka.assignment = cooperative-sticky",
        (GroupProtocol::Classic, Assignment::Eager) => "kafka.assignment = eager (range)",
    };
    Advice::new(
        format!(
            "this member has {ours}, and the members of the group {} share partitions out in {theirs}, so Kafka does not let it join",
            kafka.group_id
        ),
        "Stop all of them before one with another kafka.assignment or kafka.group_protocol starts, or give this one theirs; members of \
         another program take another kafka.group_id",
    )
}

/// Returns the known reason for a Kafka that does not answer, and the remedy. `said` has librdkafka's words.
pub fn no_answer(config: &Config, said: &str) -> Advice {
    let (brokers, tls) = (&config.kafka.brokers, config.kafka.tls.enabled);
    if !tls && is_closed_at_once(said) {
        return Advice::new(
            format!("Kafka at {brokers} closes each connection without an answer, as a listener with TLS does"),
            "Set kafka.tls.enabled = true if it is one; else check that it runs and that kafka.brokers is right",
        );
    }
    let said = cut(said);
    if tls && said.contains("connecting to a PLAINTEXT broker listener") {
        return Advice::new(
            format!(
                "Kafka at {brokers} closes each connection in the TLS handshake, as a listener without TLS does: {said}"
            ),
            "Name a listener with TLS in kafka.brokers, or set kafka.tls.enabled = false",
        );
    }
    Advice::new(
        format!("Kafka at {brokers} does not answer: {said}"),
        "Check that it runs and that kafka.brokers is right",
    )
}

/// True if a connection was closed after the first request on it. librdkafka only logs that.
pub(super) fn is_closed_at_once(said: &str) -> bool {
    said.contains("Disconnected") && said.contains("in state APIVERSION_QUERY")
}

/// Returns the problem of a reported address that cannot be reached, and the remedy.
pub fn unreachable(config: &Config, address: &str, why: &str) -> Advice {
    let brokers = &config.kafka.brokers;
    Advice::new(
        format!(
            "Kafka at {brokers} answers and names {address} as the address of a broker, which cannot be reached from here: {why}"
        ),
        "Correct advertised.listeners of that broker, or the network between; see that it runs",
    )
}

/// Returns librdkafka's words without its advice, which is about its own properties, and without the elapsed time.
fn cut(reason: &str) -> &str {
    let ends = ["\n", ": client SSL authentication might", " (after "];
    let end = ends.iter().filter_map(|end| reason.find(end)).min();
    reason[..end.unwrap_or(reason.len())].trim_end_matches('.')
}

/// Returns the name of this client for the brokers, as far as the configuration shows it.
fn principal(config: &Config) -> String {
    let kafka = &config.kafka;
    match (&kafka.sasl.username, &kafka.tls.cert_file) {
        (Some(user), _) => format!("User:{user}"),
        (None, Some(cert_file)) => format!("User:<subject of {cert_file}>"),
        (None, None) => "User:ANONYMOUS".to_owned(),
    }
}

/// Returns the command that gives this client the right to read, which includes the right to describe.
pub fn grant(config: &Config, kind: &str, name: &str) -> String {
    let words = [
        "kafka-acls.sh",
        "--bootstrap-server",
        &config.kafka.brokers,
        "--add",
        "--allow-principal",
        &principal(config),
        "--operation",
        "Read",
        &format!("--{kind}"),
        name,
    ];
    words.map(shell_word).join(" ")
}

fn shell_word(word: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./:,=@".contains(&byte);
    if !word.is_empty() && word.bytes().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// True if an answer shows that waiting does not help: a refusal, or a record that the topic does not accept.
pub fn is_for_good(error: &KafkaError) -> bool {
    use RDKafkaErrorCode as Code;
    let of_record = [Code::MessageSizeTooLarge, Code::InvalidRecord, Code::InvalidTopic, Code::PolicyViolation];
    super::code(error).is_some_and(|code| of_record.contains(&code)) || Refusal::from_error(error).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, Sources};

    fn configured(flags: &[&str]) -> Config {
        let flags = flags.iter().map(|flag| flag.parse().unwrap()).collect();
        let env = [("TALLYHOUSE__KAFKA__SASL__PASSWORD".to_owned(), "hunter2".to_owned())].into();
        config::load(&Sources { flags, env, ..Sources::default() }).unwrap().config
    }

    fn without_login(flags: &[&str]) -> Config {
        let flags = flags.iter().map(|flag| flag.parse().unwrap()).collect();
        config::load(&Sources { flags, ..Sources::default() }).unwrap().config
    }

    #[test]
    fn waiting_is_given_up_only_for_what_it_does_not_mend() {
        use RDKafkaErrorCode as Code;
        let of = |code, reason: &str| Refusal::of(Some(code), reason);
        for (code, reason) in [
            (
                Code::BrokerTransportFailure,
                "localhost:9092/bootstrap: Connect to ipv4#127.0.0.1:9092 failed: Connection refused",
            ),
            (Code::AllBrokersDown, "1/1 brokers are down"),
            (Code::OperationTimedOut, ""),
            (Code::SSL, "ssl://b:9093/bootstrap: SSL handshake failed: SSL transport error: Connection timed out"),
            (Code::SSL, "ssl://b:9093/bootstrap: SSL handshake failed: Disconnected: connection closed by peer"),
        ] {
            assert_eq!(of(code, reason), None, "{reason}");
        }
        let alert = "ssl://b:9093/bootstrap: Receive failed: error:0A000412:SSL routines::ssl/tls alert bad certificate: SSL alert \
                     number 42 (after 0ms in state APIVERSION_QUERY)";
        let failed = "ssl://b:9093/bootstrap: SSL handshake failed: error:0A000086:SSL routines::certificate verify failed: broker \
                      certificate could not be verified, verify that ssl.ca.location is correctly configured";
        assert!(matches!(of(Code::BrokerTransportFailure, alert), Some(Refusal::ClientCertificate { .. })));
        assert!(matches!(of(Code::SSL, failed), Some(Refusal::Untrusted { .. })));
        assert!(matches!(of(Code::Authentication, "x"), Some(Refusal::Login { .. })));
        assert_eq!(of(Code::GroupAuthorizationFailed, ""), Some(Refusal::Group));
        assert_eq!(cut(alert).rsplit(": ").next(), Some("SSL alert number 42"));
    }

    #[test]
    fn what_answers_in_the_place_of_kafka_is_named() {
        use RDKafkaErrorCode as Code;
        let http = "GroupCoordinator: 10.9.9.9:29936: Receive failed: Invalid response size 1213486160 (0..1000000000): increase \
                    receive.message.max.bytes (after 0ms in state APIVERSION_QUERY)";
        let refusal =
            Refusal::of(Some(Code::BadMessage), &http.replace("10.9.9.9:29936:", "10.9.9.9:29936/bootstrap:"));
        let message = refusal.unwrap().describe(&without_login(&[]));
        assert!(message.starts_with("an HTTP server answers where Kafka should: 10.9.9.9:29936. Check"), "{message}");
        assert!(matches!(Refusal::of(Some(Code::MessageSizeTooLarge), http), Some(Refusal::Http { .. })));
        // The text is about a batch that is larger than configured.
        let large = http.replace("1213486160", "1000000001");
        assert_eq!(Refusal::of(Some(Code::MessageSizeTooLarge), &large), None);
        let closed = "[thrd:127.0.0.1:9093/bootstrap]: 127.0.0.1:9093/bootstrap: Disconnected: connection reset by peer (after \
                      1ms in state APIVERSION_QUERY)";
        assert!(
            no_answer(&without_login(&[]), closed).to_string().contains("Set kafka.tls.enabled = true if it is one")
        );
        let plain = "ssl://b:9092/bootstrap: SSL handshake failed: Disconnected: connecting to a PLAINTEXT broker listener? (after";
        let message = no_answer(&without_login(&["kafka.tls.enabled=true"]), plain).to_string();
        assert!(message.contains("as a listener without TLS does"), "{message}");
        assert!(
            no_answer(&without_login(&[]), "x")
                .to_string()
                .ends_with("does not answer: x. Check that it runs and that kafka.brokers is right")
        );
    }

    #[test]
    fn another_way_of_sharing_partitions_out_is_named() {
        let refused = Refusal::of(Some(RDKafkaErrorCode::InconsistentGroupProtocol), "").unwrap();
        let message = refused.describe(&without_login(&["kafka.assignment=eager"]));
        assert!(message.starts_with("this member has kafka.assignment = eager (range), and"), "{message}");
        assert!(message.contains("Stop all of them before"), "{message}");
    }

    #[test]
    fn the_address_is_taken_out_of_librdkafkas_words() {
        let reason = "sasl_ssl://b1.example:9094/bootstrap: SSL handshake failed: error:0A000086";
        assert_eq!(address(reason), Some("b1.example:9094"));
        assert_eq!(address("ssl://[::1]:9093/1: Failed to verify"), Some("[::1]:9093"));
        assert_eq!(address("GroupCoordinator: 10.0.0.1:9092/1: Connect failed"), Some("10.0.0.1:9092"));
        assert_eq!(address("1/1 brokers are down"), None);
        assert_eq!(address("ssl://"), None);
    }

    #[test]
    fn what_a_topic_does_not_take_is_refused_for_good() {
        use RDKafkaErrorCode as Code;
        let is = |code| is_for_good(&KafkaError::MessageProduction(code));
        for code in [Code::MessageSizeTooLarge, Code::InvalidRecord, Code::TopicAuthorizationFailed] {
            assert!(is(code), "{code}");
        }
        for code in [Code::MessageTimedOut, Code::NotEnoughReplicas, Code::UnknownTopicOrPartition] {
            assert!(!is(code), "{code}");
        }
        assert!(!is_for_good(&KafkaError::Canceled));
    }

    #[test]
    fn the_command_stands_in_a_shell_as_it_is() {
        let config = configured(&[
            "kafka.sasl.mechanism=SCRAM-SHA-512",
            "kafka.sasl.username=o'brien & co",
            "kafka.group_id=writers of mail",
        ]);
        assert_eq!(
            grant(&config, "group", &config.kafka.group_id),
            "kafka-acls.sh --bootstrap-server localhost:9092 --add --allow-principal 'User:o'\\''brien & co' --operation Read \
             --group 'writers of mail'"
        );
    }

    #[test]
    fn a_refused_login_names_the_user_and_the_keys_and_no_password() {
        let config = configured(&["kafka.sasl.mechanism=SCRAM-SHA-512", "kafka.sasl.username=writer"]);
        let message = Refusal::Login { reason: "sasl_ssl://b:9094/bootstrap: authentication error.".to_owned() }
            .describe(&config);
        assert!(
            message.contains("\"writer\" with SCRAM-SHA-512") && message.contains("kafka.sasl.password"),
            "{message}"
        );
        assert!(!message.contains("hunter2"), "{message}");
    }
}
