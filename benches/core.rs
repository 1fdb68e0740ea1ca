//! Measures each step of the hot path of the core: `cargo bench`. Figures are per event and in bytes of payload.

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use devstack::producer::Events;
use std::hint::black_box;
use tallyhouse_core::batch::{Batch, Part, block};
use tallyhouse_core::decode::mapped::{Decoder, Mapping, MappingText};
use tallyhouse_core::decode::{TimeBounds, decode};
use tallyhouse_core::protocol::marks::Insert;
use tallyhouse_core::window::{Record, Window};

const EVENTS: u64 = 10_000;
const BOUNDS: TimeBounds = TimeBounds { past_seconds_max: i64::MAX / 2, future_seconds_max: i64::MAX / 2 };

fn payloads() -> Vec<Vec<u8>> {
    let events = Events { broken_percent: 0, ..Events::default() };
    (0..EVENTS).map(|n| events.payload(n).bytes).collect()
}

fn record(offset: usize, payload: &[u8]) -> Record<'_> {
    Record { offset: offset as u64, timestamp_ms: Some(0), key: None, payload: Some(payload) }
}

fn filled(payloads: &[Vec<u8>]) -> Window {
    let mut window = Window::new(0);
    for (offset, payload) in payloads.iter().enumerate() {
        window.push(&record(offset, payload), &decode(Some(payload), None, &BOUNDS));
    }
    window
}

fn chunks(batch: &Batch, insert: &Insert) -> usize {
    block(insert.table, &[Part { batch, partitions: &insert.partitions, source: "topic/0@id" }]).1.len()
}

fn core(criterion: &mut Criterion) {
    let payloads = payloads();
    let mut group = criterion.benchmark_group("core");
    group.throughput(Throughput::ElementsAndBytes {
        elements: EVENTS,
        bytes: payloads.iter().map(|payload| payload.len() as u64).sum(),
    });
    group.bench_function("decode", |bencher| {
        bencher
            .iter(|| payloads.iter().filter(|payload| decode(Some(black_box(payload)), None, &BOUNDS).is_ok()).count());
    });
    // The default form as a mapping: the same records by the decoder of other producers.
    let mapping = Mapping::new(&MappingText::default()).expect("the default form is a mapping");
    let decoder = Decoder::new(BOUNDS, Some(mapping));
    group.bench_function("decode by a mapping", |bencher| {
        bencher
            .iter(|| payloads.iter().filter(|payload| decoder.decode(Some(black_box(payload)), None).is_ok()).count());
    });
    group.bench_function("window", |bencher| {
        let decoded: Vec<_> = payloads.iter().map(|payload| decode(Some(payload), None, &BOUNDS)).collect();
        bencher.iter(|| {
            let mut window = Window::new(0);
            for (offset, (payload, event)) in payloads.iter().zip(&decoded).enumerate() {
                window.push(&record(offset, payload), event);
            }
            window
        });
    });
    group.bench_function("freeze and encode", |bencher| {
        bencher.iter_batched(
            || filled(&payloads),
            |window| {
                let batch = Batch::freeze(window, 0);
                let inserts = batch.frozen().expected.inserts();
                inserts.iter().map(|insert| chunks(&batch, insert)).sum::<usize>()
            },
            BatchSize::LargeInput,
        );
    });
    group.finish();
}

criterion_group!(benches, core);
criterion_main!(benches);
