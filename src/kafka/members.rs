//! Describes a consumer group from outside of it: its members, and the rights of this client on the group.
//!
//! librdkafka can describe it (`rd_kafka_DescribeConsumerGroups`, for the classic and the consumer protocol) and reads the
//! assignments itself. rust-rdkafka only passes on the bytes of the classic protocol. Must never join the group.

use super::consumer::Consumer;
use super::{native, refusal};
use crate::config::{Config, GroupProtocol};
use crate::platform::advice::Advice;
use rdkafka::bindings as c;
use rdkafka::consumer::Consumer as _;
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::types::RDKafkaErrorCode;
use serde::Serialize;
use std::ffi::{CStr, CString, c_char};
use std::time::Duration;

/// The state of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum GroupState {
    /// Every member knows its partitions.
    Stable,
    /// The group is assigning partitions.
    Rebalancing,
    /// It has committed offsets and no members.
    Empty,
    /// Kafka does not know it: nobody has joined or committed.
    Unknown,
    /// Kafka does not report the state.
    NotReported,
}

/// The ways in which a group assigns partitions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Members assign them, by the strategy of this name.
    Classic(String),
    /// The broker assigns them (KIP-848).
    Consumer,
}

/// A consumer group with its state and members.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// State of the group.
    pub state: GroupState,
    /// Way in which the group assigns partitions; `None` if it has not begun to, or Kafka does not report it.
    pub protocol: Option<Protocol>,
    /// Members of the group.
    pub members: Vec<Member>,
    /// True if this client may read the group, which joining and committing require; `None` if the broker does not report it.
    pub may_read: Option<bool>,
}

impl Group {
    /// Returns the reason why a member with this configuration cannot join as long as the group's members are there, if there is
    /// one. A classic member may join a group of the consumer protocol.
    pub fn keeps_out(&self, config: &Config) -> Option<Advice> {
        let ours = match config.kafka.group_protocol {
            GroupProtocol::Classic => Some(config.kafka.assignment.strategy()),
            GroupProtocol::Consumer => None,
        };
        match &self.protocol {
            Some(Protocol::Classic(theirs)) if !self.members.is_empty() && ours != Some(theirs) => {
                Some(refusal::other_protocol(config, &format!("the classic protocol by the strategy {theirs}")))
            }
            _ => None,
        }
    }
}

/// One member of a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Member {
    /// Name that the coordinator has given it.
    #[serde(skip)]
    pub id: String,
    /// `kafka.client_id` of its configuration.
    pub client_id: String,
    /// Address from which it connects.
    pub host: String,
    /// `kafka.group_instance_id`, if it is a static member.
    pub instance_id: Option<String>,
    /// Partitions of the topic that it has, in order; `None` if the broker does not report them.
    pub partitions: Option<Vec<i32>>,
}

/// Returns the coordinator's name for this member; empty while it has none. Blocks until librdkafka's main thread answers.
pub fn member_id(consumer: &Consumer) -> String {
    let client = consumer.client().native_ptr();
    // SAFETY: `client` lives as long as `consumer`. The text is null or ends with a null byte, and this function has to free it.
    unsafe {
        let id = c::rd_kafka_memberid(client);
        let copy = text(id).unwrap_or_default();
        c::rd_kafka_mem_free(client, id.cast());
        copy
    }
}

/// Describes a group and its members' partitions of `topic`. Blocks.
///
/// # Errors
/// Kafka does not answer in time, or answers with an error; the right to describe the group may be missing.
pub fn describe(consumer: &Consumer, group: &str, topic: &str, within: Duration) -> KafkaResult<Group> {
    let name = CString::new(group).map_err(|_| KafkaError::AdminOp(RDKafkaErrorCode::InvalidGroupId))?;
    let client = consumer.client().native_ptr();
    let operation = c::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBECONSUMERGROUPS;
    // SAFETY: `client` lives as long as `consumer`, `names` and `name` until the answer is read. What
    // `DescribeConsumerGroups_result_groups` gives belongs to the event, everything inside too.
    let described = unsafe {
        let mut names = [name.as_ptr()];
        let send = |options: *const c::rd_kafka_AdminOptions_t, queue| {
            native::ask_for_rights(options);
            c::rd_kafka_DescribeConsumerGroups(client, names.as_mut_ptr(), 1, options, queue);
        };
        native::ask(client, operation, within, send, |event| {
            let mut count = 0;
            let result = c::rd_kafka_event_DescribeConsumerGroups_result(event);
            let groups = c::rd_kafka_DescribeConsumerGroups_result_groups(result, &raw mut count);
            if count != 1 {
                return Err(RDKafkaErrorCode::GroupIdNotFound);
            }
            read(*groups, topic)
        })
    };
    described.map_err(KafkaError::AdminOp)
}

/// Safety: `group` is a description that lives until this returns.
unsafe fn read(group: *const c::rd_kafka_ConsumerGroupDescription_t, topic: &str) -> Result<Group, RDKafkaErrorCode> {
    use c::rd_kafka_consumer_group_state_t as State;
    // SAFETY: `group` is valid, and what these give belongs to it; `operations` has `count` elements or is null.
    unsafe {
        let error = c::rd_kafka_ConsumerGroupDescription_error(group);
        if !error.is_null() {
            native::check(c::rd_kafka_error_code(error))?;
        }
        let state = match c::rd_kafka_ConsumerGroupDescription_state(group) {
            State::RD_KAFKA_CONSUMER_GROUP_STATE_STABLE => GroupState::Stable,
            State::RD_KAFKA_CONSUMER_GROUP_STATE_PREPARING_REBALANCE
            | State::RD_KAFKA_CONSUMER_GROUP_STATE_COMPLETING_REBALANCE => GroupState::Rebalancing,
            State::RD_KAFKA_CONSUMER_GROUP_STATE_EMPTY => GroupState::Empty,
            State::RD_KAFKA_CONSUMER_GROUP_STATE_DEAD => GroupState::Unknown,
            _ => GroupState::NotReported,
        };
        let assignor = text(c::rd_kafka_ConsumerGroupDescription_partition_assignor(group));
        let protocol = match c::rd_kafka_ConsumerGroupDescription_type(group) {
            c::rd_kafka_consumer_group_type_t::RD_KAFKA_CONSUMER_GROUP_TYPE_CONSUMER => Some(Protocol::Consumer),
            c::rd_kafka_consumer_group_type_t::RD_KAFKA_CONSUMER_GROUP_TYPE_CLASSIC => assignor.map(Protocol::Classic),
            _ => None,
        };
        let mut count = 0;
        let operations = c::rd_kafka_ConsumerGroupDescription_authorized_operations(group, &raw mut count);
        let members = c::rd_kafka_ConsumerGroupDescription_member_count(group);
        let members = (0..members).map(|index| {
            let member = c::rd_kafka_ConsumerGroupDescription_member(group, index);
            Member {
                id: text(c::rd_kafka_MemberDescription_consumer_id(member)).unwrap_or_default(),
                client_id: text(c::rd_kafka_MemberDescription_client_id(member)).unwrap_or_default(),
                host: text(c::rd_kafka_MemberDescription_host(member)).unwrap_or_default(),
                instance_id: text(c::rd_kafka_MemberDescription_group_instance_id(member)),
                partitions: partitions(c::rd_kafka_MemberDescription_assignment(member), topic),
            }
        });
        let may_read = native::may(operations, count, c::rd_kafka_AclOperation_t::RD_KAFKA_ACL_OPERATION_READ);
        Ok(Group { state, protocol, members: members.collect(), may_read })
    }
}

/// Safety: `assignment` is null or lives until this returns.
unsafe fn partitions(assignment: *const c::rd_kafka_MemberAssignment_t, topic: &str) -> Option<Vec<i32>> {
    if assignment.is_null() {
        return None;
    }
    // SAFETY: `assignment` is valid; its list, which is null or belongs to it, has `cnt` elements at `elems`.
    let mut numbers = unsafe {
        let list = c::rd_kafka_MemberAssignment_partitions(assignment);
        if list.is_null() {
            return None;
        }
        let count = usize::try_from((*list).cnt).unwrap_or(0);
        let elements = (0..count).map(|index| &*(*list).elems.add(index));
        let ours = elements.filter(|element| text(element.topic).as_deref() == Some(topic));
        ours.map(|element| element.partition).collect::<Vec<_>>()
    };
    numbers.sort_unstable();
    Some(numbers)
}

/// Safety: `chars` is null or ends with a null byte. `None` where it is null or empty.
unsafe fn text(chars: *const c_char) -> Option<String> {
    // SAFETY: the caller guarantees it.
    let text = (!chars.is_null()).then(|| unsafe { CStr::from_ptr(chars) }.to_string_lossy().into_owned());
    text.filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, Sources};

    #[test]
    fn members_that_share_out_otherwise_keep_a_member_out() {
        let member = || Member {
            id: String::new(),
            client_id: String::new(),
            host: String::new(),
            instance_id: None,
            partitions: None,
        };
        let group = |protocol, members| Group { state: GroupState::Stable, protocol, members, may_read: None };
        let classic = |name: &str| Some(Protocol::Classic(name.to_owned()));
        let keeps_out = |setting: &str, group: &Group| {
            let flags = vec![setting.parse().unwrap()];
            let config = config::load(&Sources { flags, ..Sources::default() }).unwrap().config;
            group.keeps_out(&config)
        };
        let (eager, cooperative) = ("kafka.assignment=eager", "kafka.assignment=cooperative-sticky");
        let consumer = "kafka.group_protocol=consumer";
        for (setting, protocol) in
            [(eager, "cooperative-sticky"), (cooperative, "range"), (consumer, "cooperative-sticky")]
        {
            let message = keeps_out(setting, &group(classic(protocol), vec![member()])).unwrap().problem;
            assert!(message.contains(&format!("the classic protocol by the strategy {protocol}")), "{message}");
            assert_eq!(keeps_out(setting, &group(classic(protocol), vec![])), None, "nobody is there");
        }
        for (setting, protocol) in [
            (eager, classic("range")),
            (cooperative, classic("cooperative-sticky")),
            (consumer, Some(Protocol::Consumer)),
            (eager, Some(Protocol::Consumer)),
            (eager, None),
        ] {
            assert_eq!(keeps_out(setting, &group(protocol, vec![member()])), None, "{setting}");
        }
    }
}
