//! The findings of an audit: stable codes, each with its subject.
//!
//! A code must never change its meaning, and a JSON field never its name: scripts and alerts rest on them
//! (`docs/audit.md`).

use serde::Serialize;

/// One of the checks of an audit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Check {
    /// No offset is in the tables twice.
    Duplicates,
    /// Every record up to the committed offset is in the tables.
    Gaps,
    /// `daily` is the GROUP BY of `email_events`.
    Daily,
    /// `recipients` has the recipients of all rows.
    Recipients,
    /// Batches that are announced and not yet committed.
    Intents,
    /// Kafka's committed offset fits the tables and the log.
    Offsets,
    /// The number of past inserts whose repetition ClickHouse recognises.
    Tokens,
}

impl Check {
    /// Every check, in the order of the report.
    pub const ALL: [Check; 7] = [
        Check::Duplicates,
        Check::Gaps,
        Check::Daily,
        Check::Recipients,
        Check::Intents,
        Check::Offsets,
        Check::Tokens,
    ];

    /// Returns the promise that holds when the check finds nothing.
    pub fn promise(self) -> &'static str {
        match self {
            Check::Duplicates => "no offset is stored twice",
            Check::Gaps => "every record up to the committed offset is stored",
            Check::Daily => "daily is the GROUP BY of email_events",
            Check::Recipients => "recipients has the recipients of all rows",
            Check::Intents => "announced batches and how far they are",
            Check::Offsets => "committed offsets fit the tables and the log",
            Check::Tokens => "repeated inserts are recognised",
        }
    }
}

/// The severity of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Something that is promised does not hold.
    Violation,
    /// A fact worth knowing; nothing is wrong.
    Notice,
}

/// The kind of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// One offset has several rows.
    Duplicate,
    /// Kafka has records that are not in the tables.
    Missing,
    /// Offsets are not in the tables and could not be looked up in Kafka.
    Unchecked,
    /// Rejected records are older than the time for which `rejected_events` keeps them.
    ExpiredRejects,
    /// Rows of days that `email_events` no longer keeps.
    ExpiredRows,
    /// Counters of days that `email_events` no longer keeps.
    ExpiredDays,
    /// The log holds records from before the first one that was stored.
    BeforeFirst,
    /// Rows beyond the committed offset that no intent announces.
    UnannouncedRows,
    /// A counter is not the number of its rows.
    DailyDiffers,
    /// An interrupted (or running) repair has left its constraint or table.
    RepairLeftover,
    /// Recipients are missing, or show fewer events than their rows.
    RecipientsMissing,
    /// A batch is announced and not yet committed.
    OpenIntent,
    /// The tables have rows of a partition that has no committed offset.
    LostOffset,
    /// The committed offset is before the marks.
    OffsetBehindMarks,
    /// `run` stops this partition.
    Stops,
    /// The part of the deduplication window that is in use.
    TokenHeadroom,
    /// A table has no deduplication window.
    TokenWindowOff,
}

impl Code {
    /// Returns the check of this code.
    pub fn check(self) -> Check {
        match self {
            Code::Duplicate => Check::Duplicates,
            Code::Missing | Code::Unchecked | Code::ExpiredRejects | Code::ExpiredRows | Code::BeforeFirst => {
                Check::Gaps
            }
            Code::DailyDiffers | Code::ExpiredDays | Code::RepairLeftover => Check::Daily,
            Code::RecipientsMissing => Check::Recipients,
            Code::OpenIntent => Check::Intents,
            Code::UnannouncedRows | Code::LostOffset | Code::OffsetBehindMarks | Code::Stops => Check::Offsets,
            Code::TokenHeadroom | Code::TokenWindowOff => Check::Tokens,
        }
    }

    /// Returns the severity of this code.
    pub fn severity(self) -> Severity {
        match self {
            Code::Unchecked | Code::ExpiredRejects | Code::ExpiredRows | Code::ExpiredDays => Severity::Notice,
            Code::BeforeFirst | Code::OpenIntent | Code::TokenHeadroom => Severity::Notice,
            _ => Severity::Violation,
        }
    }

    /// Returns the stable word of this code.
    pub fn word(self) -> &'static str {
        match self {
            Code::Duplicate => "duplicate",
            Code::Missing => "missing",
            Code::Unchecked => "unchecked",
            Code::ExpiredRejects => "expired_rejects",
            Code::ExpiredRows => "expired_rows",
            Code::ExpiredDays => "expired_days",
            Code::BeforeFirst => "before_first",
            Code::UnannouncedRows => "unannounced_rows",
            Code::DailyDiffers => "daily_differs",
            Code::RepairLeftover => "repair_leftover",
            Code::RecipientsMissing => "recipients_missing",
            Code::OpenIntent => "open_intent",
            Code::LostOffset => "lost_offset",
            Code::OffsetBehindMarks => "offset_behind_marks",
            Code::Stops => "stops",
            Code::TokenHeadroom => "token_headroom",
            Code::TokenWindowOff => "token_window_off",
        }
    }
}

/// One counter: the key of `daily`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CounterName {
    /// UTC day as text, such as `2026-11-24`.
    pub day: String,
    /// `delivered`, `open`, `click`, `bounce` or `unsubscribe`.
    pub event_type: String,
    /// Campaign of the counter.
    pub campaign_id: String,
    /// Workspace that owns the campaign.
    pub workspace_id: String,
}

/// One finding. Fields that do not apply are left out of the JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The check that found it.
    pub check: Check,
    /// The kind of the finding.
    pub code: Code,
    /// Severity of the finding.
    pub severity: Severity,
    /// Source as text, such as `topic/partition@topic_id`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// First offset that the finding concerns.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_offset: Option<u64>,
    /// One past the last offset that the finding concerns.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end_offset: Option<u64>,
    /// Counter that the finding concerns.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub counter: Option<CounterName>,
    /// Number of rows or records that the finding concerns.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rows: Option<u64>,
    /// The number in `daily`, which differs from `rows`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total: Option<u64>,
    /// Table that the finding concerns.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub table: Option<String>,
    /// The reason why `run` stops: a code of `StopReason`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<&'static str>,
    /// The finding in words, with the next step.
    pub message: String,
}

impl Finding {
    /// Makes a finding that has only a code and a message.
    pub fn new(code: Code, message: impl Into<String>) -> Finding {
        Finding {
            check: code.check(),
            code,
            severity: code.severity(),
            source: None,
            first_offset: None,
            end_offset: None,
            counter: None,
            rows: None,
            total: None,
            table: None,
            reason: None,
            message: message.into(),
        }
    }

    /// Adds the name of the source.
    pub fn of(mut self, source: impl Into<String>) -> Finding {
        self.source = Some(source.into());
        self
    }

    /// Names the offsets `first..end`.
    pub fn at(mut self, first: u64, end: u64) -> Finding {
        (self.first_offset, self.end_offset) = (Some(first), Some(end));
        self
    }
}
