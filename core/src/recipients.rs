//! The rows of `recipients` of some batches: one for each campaign and recipient, with the types of its events and their first times.
//!
//! A row that is written twice changes nothing: flags are joined by OR and times by the least. So these rows need no token and no mark.
//! The sink writes them before the counters of the same batches, and the mark of the counters vouches for them.
//!
//! A recipient is a keyed hash of its address. Must never hold or return an address. `sql/` and `src/clickhouse/recipients.rs`
//! compute the same hash.

use crate::batch::Batch;
use crate::decode::event::EventType;
use crate::tables;
use crate::window::native::{Chunks, Column, Reader, native_block, uuid_bytes};
use bytes::Bytes;
use foldhash::fast::FixedState;
use siphasher::sip::SipHasher24;
use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::ops::Range;

/// Number of rows of one block. All rows of an insert are sorted, and blocks bound the memory for their columns.
const BLOCK_ROWS: usize = 65_536;

/// Types of which a row has the first time, in the order of its columns.
const TIMED: [EventType; 5] =
    [EventType::Delivered, EventType::Open, EventType::Click, EventType::Bounce, EventType::Unsubscribe];

/// A first time of a recipient that has no such event: the last second that `DateTime` can hold.
pub const NEVER: u32 = u32::MAX;

/// The secret key of the hashes. Who has it can find out if an address is in a campaign.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct RecipientKey {
    /// First half of the key of SipHash-2-4.
    pub k0: u64,
    /// Second half of that key.
    pub k1: u64,
}

impl fmt::Debug for RecipientKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RecipientKey(<hidden>)")
    }
}

impl RecipientKey {
    /// Returns the hash of an address. Upper and lower case are the same in its domain, and differ before the last `@`.
    pub fn hash(&self, email: &[u8]) -> u64 {
        let hasher = SipHasher24::new_with_keys(self.k0, self.k1);
        let domain = email.iter().rposition(|&byte| byte == b'@').unwrap_or(email.len());
        match email[domain..].iter().any(u8::is_ascii_uppercase) {
            false => hasher.hash(email),
            true => {
                let mut lowered = email.to_vec();
                lowered[domain..].make_ascii_lowercase();
                hasher.hash(&lowered)
            }
        }
    }
}

/// One event of a recipient.
#[derive(Clone, Copy, Default)]
struct Entry {
    recipient: u64,
    event_time: u32,
    type_index: u8,
}

/// The events of some batches that have an address, in the order of the table.
pub struct Recipients {
    entries: Vec<Entry>,
    /// Campaigns that are left, each with the range of its entries that are left. A campaign is a number in ClickHouse's order of UUIDs.
    campaigns: VecDeque<(u128, Range<usize>)>,
}

impl Recipients {
    /// Returns the events of these batches. It takes 16 bytes for each.
    pub fn of<'a>(batches: impl IntoIterator<Item = &'a Batch> + Clone, key: RecipientKey) -> Recipients {
        // The counters say how many events a campaign has. So each event gets a place among those of its campaign at once.
        let mut ranges: HashMap<u128, Range<usize>, FixedState> = HashMap::default();
        for (campaign_id, events) in batches.clone().into_iter().flat_map(Batch::events_of_campaigns) {
            ranges.entry(u128::from_le_bytes(uuid_bytes(campaign_id))).or_default().end += events as usize;
        }
        let mut order: Vec<u128> = ranges.keys().copied().collect();
        order.sort_unstable();
        let mut room = 0;
        for campaign in &order {
            let events = ranges.insert(*campaign, room..room).unwrap_or_default().end;
            room += events;
        }
        let mut entries = vec![Entry::default(); room];
        for columns in batches.into_iter().flat_map(Batch::addressed) {
            let [mut ids, mut emails, mut types, mut times] = columns.chunks.map(Reader::of);
            for _ in 0..columns.rows {
                let email = emails.string().filter(|email| !email.is_empty()).map(|email| key.hash(email));
                let (id, event_type, event_time) = (ids.array(), types.array(), times.array());
                let (Some(recipient), Some(id), Some([event_type]), Some(event_time)) =
                    (email, id, event_type, event_time)
                else {
                    continue;
                };
                let range = ranges.get_mut(&u128::from_le_bytes(id)).expect("each event has a counter");
                let event_time = u32::from_le_bytes(event_time);
                entries[range.end] = Entry { recipient, event_time, type_index: event_type - 1 };
                range.end += 1;
            }
        }
        let of_campaign = |campaign| Some((campaign, ranges.remove(&campaign).filter(|range| !range.is_empty())?));
        let campaigns: VecDeque<(u128, Range<usize>)> = order.into_iter().filter_map(of_campaign).collect();
        for (_, range) in &campaigns {
            entries[range.clone()].sort_unstable_by_key(|entry| entry.recipient);
        }
        Recipients { entries, campaigns }
    }

    /// True if no rows are left.
    pub fn is_empty(&self) -> bool {
        self.campaigns.is_empty()
    }

    /// Returns the next rows as one Native block, with their number; `None` after the last ones.
    pub fn next_block(&mut self) -> Option<(u64, Vec<Bytes>)> {
        let mut rows = 0;
        let (mut campaign_id, mut recipient, mut flags) = <(Column, Column, Column)>::default();
        let mut firsts: [Column; TIMED.len()] = Default::default();
        while rows < BLOCK_ROWS
            && let Some((campaign, left)) = self.campaigns.front_mut()
        {
            let first = self.entries[left.start].recipient;
            let (mut bits, mut times) = (0u16, [NEVER; TIMED.len()]);
            for entry in self.entries[left.clone()].iter().take_while(|entry| entry.recipient == first) {
                left.start += 1;
                bits |= 1 << entry.type_index;
                // The types with a time come first in the enumeration.
                if let Some(time) = times.get_mut(usize::from(entry.type_index)) {
                    *time = entry.event_time.min(*time);
                }
            }
            rows += 1;
            campaign_id.put(&campaign.to_le_bytes());
            recipient.put(&first.to_le_bytes());
            flags.put(&bits.to_le_bytes());
            firsts.iter_mut().zip(times).for_each(|(column, time)| column.put(&time.to_le_bytes()));
            if left.start == left.end {
                self.campaigns.pop_front();
            }
        }
        let columns = [campaign_id, recipient, flags].into_iter().chain(firsts);
        let definition = tables::RECIPIENTS.columns.iter();
        let columns: Vec<(&str, &str, Chunks)> =
            definition.zip(columns).map(|(of, column)| (of.name, of.block_type, column.finish())).collect();
        (rows > 0).then(|| (rows as u64, native_block(rows as u64, columns)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::{TimeBounds, decode};
    use crate::window::{Record, Window};
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    const KEY: RecipientKey = RecipientKey { k0: 1, k1: 2 };

    /// Number of a campaign, of a recipient (0: no address), of a type, and a time.
    type Given = (u8, u8, usize, u32);

    fn batch(events: &[Given]) -> Batch {
        let mut window = Window::new(0);
        for (offset, (campaign, person, kind, time)) in (0..).zip(events) {
            let email = if *person == 0 { String::new() } else { format!("p{person}@Example.com") };
            let payload = format!(
                r#"{{"campaign_id":"{campaign:032x}","workspace_id":"{:032x}","email":"{email}","event_type":"{}","event_time":{time}}}"#,
                1,
                EventType::ALL[*kind].name()
            );
            let payload = Some(payload.as_bytes());
            let bounds = TimeBounds { past_seconds_max: 0, future_seconds_max: 0 };
            let record = Record { offset, timestamp_ms: None, key: None, payload };
            window.push(&record, &decode(payload, None, &bounds));
        }
        Batch::freeze(window, 0)
    }

    /// Returns the rows of all blocks: campaign, hash, flags and first times, by the fixed widths of their columns.
    fn rows(mut recipients: Recipients) -> Vec<(u128, u64, u16, [u32; 5])> {
        let mut found = Vec::new();
        while let Some((rows, block)) = recipients.next_block() {
            let (rows, block) = (rows as usize, block.concat());
            let mut end = block.len();
            let mut column = |width: usize, index: usize| {
                let definition = &tables::RECIPIENTS.columns[index];
                let values = block[end - width * rows..end].to_vec();
                end -= width * rows + definition.name.len() + definition.block_type.len() + 2;
                values
            };
            let times: Vec<Vec<u8>> = (0..5).rev().map(|n| column(4, 3 + n)).collect();
            let (flags, hashes, ids) = (column(2, 2), column(8, 1), column(16, 0));
            for n in 0..rows {
                let time = |which: usize| u32::from_le_bytes(times[4 - which][4 * n..4 * n + 4].try_into().unwrap());
                found.push((
                    u128::from_le_bytes(ids[16 * n..16 * n + 16].try_into().unwrap()),
                    u64::from_le_bytes(hashes[8 * n..8 * n + 8].try_into().unwrap()),
                    u16::from_le_bytes(flags[2 * n..2 * n + 2].try_into().unwrap()),
                    std::array::from_fn(time),
                ));
            }
        }
        found
    }

    fn wanted(events: &[Given]) -> Vec<(u128, u64, u16, [u32; 5])> {
        let mut all: BTreeMap<(u128, u64), (u16, [u32; 5])> = BTreeMap::new();
        for &(campaign, person, kind, time) in events.iter().filter(|(_, person, ..)| *person > 0) {
            // The number of a campaign lies in the last byte of its id, which is in the more significant half for ClickHouse.
            let key = (u128::from(campaign) << 64, KEY.hash(format!("p{person}@example.com").as_bytes()));
            let (flags, times) = all.entry(key).or_insert((0, [NEVER; 5]));
            *flags |= 1 << kind;
            if kind < 5 {
                times[kind] = times[kind].min(time);
            }
        }
        all.into_iter().map(|((campaign, hash), (flags, times))| (campaign, hash, flags, times)).collect()
    }

    proptest! {
        /// The rows are the recount of the events of all batches, each campaign and recipient once, in the order of the table.
        #[test]
        fn rows_are_the_recount_of_the_events(
            batches in proptest::collection::vec(proptest::collection::vec((0u8..5, 0u8..9, 0usize..8, 1u32..300_000), 0..60), 1..4)
        ) {
            let frozen: Vec<Batch> = batches.iter().map(|events| batch(events)).collect();
            prop_assert_eq!(rows(Recipients::of(&frozen, KEY)), wanted(&batches.concat()));
        }
    }

    #[test]
    fn more_rows_than_a_block_has_come_in_several() {
        let events: Vec<Given> =
            (0..BLOCK_ROWS + 10).map(|n| ((n % 250) as u8, 1 + (n / 250 % 250) as u8, n / 62_500, 7)).collect();
        let found = rows(Recipients::of([&batch(&events)], KEY));
        assert_eq!(found, wanted(&events));
        let mut recipients = Recipients::of([&batch(&events)], KEY);
        assert!(!recipients.is_empty() && recipients.next_block().is_some() && recipients.next_block().is_none());
    }

    #[test]
    fn case_counts_before_the_at_sign_only() {
        let hash = |email: &str| KEY.hash(email.as_bytes());
        assert_eq!(hash("Ann@EXAMPLE.com"), hash("Ann@example.com"));
        assert_ne!(hash("Ann@example.com"), hash("ann@example.com"));
        assert_eq!(hash("a@b@C"), hash("a@b@c"));
        assert_ne!(hash("A@B@c"), hash("a@b@c"));
        assert_ne!(hash("NoAddress"), hash("noaddress"));
        // The value that `sipHash64Keyed((1, 2), 'Ann@example.com')` has; a test on a real server compares more.
        assert_ne!(KEY.hash(b"Ann@example.com"), RecipientKey { k0: 1, k1: 3 }.hash(b"Ann@example.com"));
    }

    #[test]
    fn the_key_is_never_printed() {
        assert_eq!(format!("{:?}", RecipientKey { k0: 17, k1: 19 }), "RecipientKey(<hidden>)");
    }
}
