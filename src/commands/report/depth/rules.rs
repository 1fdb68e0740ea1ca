//! The rules of the report in depth: a TOML file, and the SQL expressions that it becomes.
//!
//! Must never put a text of the file into SQL but by binding it.

use serde::Deserialize;

/// The rules in the binary.
pub const BUILT_IN: &str = include_str!("../../../../rules/report.toml");

/// Name of a provider or a kind that no rule names.
pub const OTHER: &str = "other";

/// A file of rules.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rules {
    link: Vec<String>,
    user_agent: Vec<String>,
    /// Rules for opens that a machine makes.
    #[serde(default)]
    pub machine: Vec<Rule>,
    #[serde(default)]
    bounce: Vec<Rule>,
    #[serde(default)]
    provider: Vec<Provider>,
}

/// One rule about a value in the metadata.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Name of the rows that the rule fits.
    pub name: String,
    /// Origin of the rule.
    pub source: String,
    /// Paths of the value; empty for the user agent.
    #[serde(default)]
    paths: Vec<String>,
    equals: Option<String>,
    contains: Option<String>,
    starts_with: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Provider {
    name: String,
    domains: Vec<String>,
    #[serde(rename = "source")]
    _source: String,
}

/// A reason why a file of rules cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RulesError {
    /// It is not TOML, or has other fields.
    #[error("{0}")]
    Toml(#[from] toml::de::Error),
    /// A rule must have one way to compare.
    #[error("the rule {0:?} must have exactly one of equals, contains and starts_with")]
    Comparison(String),
}

/// An SQL expression with the texts of its placeholders, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expression {
    /// SQL with a `?` for each text.
    pub sql: String,
    /// Texts to bind, one for each `?`.
    pub texts: Vec<String>,
}

impl Rules {
    /// Reads a file of rules.
    ///
    /// # Errors
    /// Any of [`RulesError`].
    pub fn parse(text: &str) -> Result<Rules, RulesError> {
        let rules: Rules = toml::from_str(text)?;
        for rule in rules.machine.iter().chain(&rules.bounce) {
            let comparisons = [&rule.equals, &rule.contains, &rule.starts_with];
            if comparisons.into_iter().flatten().count() != 1 {
                return Err(RulesError::Comparison(rule.name.clone()));
            }
        }
        Ok(rules)
    }

    /// Returns the link of a click; empty if the metadata has none.
    pub fn link(&self) -> Expression {
        first_of(&self.link)
    }

    /// Returns the name of the first machine rule that fits; empty if none does.
    pub fn machine(&self) -> Expression {
        self.named(&self.machine, "")
    }

    /// Returns `hard`, `soft`, or another name of the rules for bounces; `other` if no rule fits.
    pub fn bounce(&self) -> Expression {
        self.named(&self.bounce, OTHER)
    }

    /// Returns the name of the provider of the column `domain`.
    pub fn provider(&self) -> Expression {
        let mut expression = Expression { sql: "multiIf(".to_owned(), texts: Vec::new() };
        for provider in &self.provider {
            let domains = vec!["?"; provider.domains.len()].join(", ");
            expression.sql += &format!("has([{domains}], domain), ?, ");
            expression.texts.extend(provider.domains.iter().map(|domain| domain.to_lowercase()));
            expression.texts.push(provider.name.clone());
        }
        expression.close(OTHER)
    }

    fn named(&self, rules: &[Rule], otherwise: &str) -> Expression {
        let mut expression = Expression { sql: "multiIf(".to_owned(), texts: Vec::new() };
        for rule in rules {
            let value = first_of(if rule.paths.is_empty() { &self.user_agent } else { &rule.paths });
            let (condition, text) = match (&rule.equals, &rule.contains, &rule.starts_with) {
                (Some(text), ..) => ("lowerUTF8(value) = ?", text.to_lowercase()),
                (_, Some(text), _) => ("positionCaseInsensitiveUTF8(value, ?) > 0", text.clone()),
                (_, _, text) => ("startsWith(value, ?)", text.clone().unwrap_or_default()),
            };
            expression.sql += &condition.replace("value", &value.sql);
            expression.sql += ", ?, ";
            expression.texts.extend(value.texts);
            expression.texts.extend([text, rule.name.clone()]);
        }
        expression.close(otherwise)
    }
}

impl Expression {
    /// Ends a `multiIf`. A `multiIf` without a condition is only its last argument.
    fn close(mut self, otherwise: &str) -> Expression {
        if self.texts.is_empty() {
            self.sql = "?".to_owned();
        } else {
            self.sql += "?)";
        }
        self.texts.push(otherwise.to_owned());
        self
    }
}

/// Returns the first value that is not empty. ClickHouse gives a text without its quotes, and anything else as its JSON.
fn first_of(paths: &[String]) -> Expression {
    let mut values = Vec::new();
    let mut texts = Vec::new();
    for path in paths {
        let names = path.split('.').map(str::to_owned);
        let before = texts.len();
        texts.extend(names);
        values.push(format!("JSONExtractString(metadata, {})", vec!["?"; texts.len() - before].join(", ")));
    }
    Expression { sql: format!("arrayFirst(x -> x != '', [{}]::Array(String))", values.join(", ")), texts }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_rules_are_bound_and_each_names_its_source() {
        let rules = Rules::parse(BUILT_IN).unwrap();
        for expression in [rules.link(), rules.machine(), rules.bounce(), rules.provider()] {
            assert_eq!(expression.sql.matches('?').count(), expression.texts.len(), "{expression:?}");
            assert!(!expression.sql.contains("Google") && !expression.sql.contains("gmail"), "{expression:?}");
        }
        assert!(rules.machine.iter().all(|rule| !rule.source.is_empty() && !rule.name.is_empty()));
        assert_eq!(BUILT_IN.matches("\nname = ").count(), BUILT_IN.matches("\nsource = ").count());
    }

    #[test]
    fn rules_that_cannot_be_used_say_why() {
        let rule = |rest: &str| {
            Rules::parse(&format!("link = []\nuser_agent = []\n[[machine]]\nname = \"a\"\nsource = \"b\"\n{rest}"))
        };
        assert!(rule("equals = \"x\"").is_ok());
        assert!(matches!(rule(""), Err(RulesError::Comparison(name)) if name == "a"));
        assert!(matches!(rule("equals = \"x\"\ncontains = \"y\""), Err(RulesError::Comparison(_))));
        assert!(rule("regex = \"x\"").unwrap_err().to_string().contains("unknown field `regex`"));
    }

    #[test]
    fn without_rules_everything_is_other() {
        let rules = Rules::parse("link = []\nuser_agent = []").unwrap();
        assert_eq!(rules.provider(), Expression { sql: "?".to_owned(), texts: vec![OTHER.to_owned()] });
        assert_eq!(rules.link().sql, "arrayFirst(x -> x != '', []::Array(String))");
    }
}
