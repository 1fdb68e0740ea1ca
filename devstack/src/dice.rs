//! Random numbers that a seed repeats: splitmix64.
//!
//! The documents name seeds, so they must give the same numbers with each version of each crate.

/// Returns the finalizer of splitmix64: other bits for other numbers, the same for the same.
pub fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_add(GAMMA);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

/// A sequence of random numbers.
#[derive(Debug, Clone)]
pub struct Dice(u64);

impl Dice {
    /// Returns the sequence of this seed.
    pub fn new(seed: u64) -> Dice {
        Dice(mix(seed))
    }

    /// Returns the next number of the sequence.
    pub fn any(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(GAMMA);
        mix(self.0)
    }

    /// Returns a number of the range, whose ends belong to it.
    pub fn within(&mut self, range: std::ops::RangeInclusive<u64>) -> u64 {
        let (low, high) = range.into_inner();
        low + self.any() % (high.saturating_sub(low) + 1)
    }

    /// True in this percentage of the cases.
    pub fn percent(&mut self, percent: u64) -> bool {
        self.any() % 100 < percent
    }

    /// Returns one of them. Panics if there is none.
    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[(self.any() % from.len() as u64) as usize]
    }

    /// Puts them into a random order.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.within(0..=last as u64) as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_repeats_its_sequence_and_another_differs() {
        let roll = |seed| {
            let mut dice = Dice::new(seed);
            std::iter::repeat_with(|| dice.within(3..=9)).take(50).collect::<Vec<u64>>()
        };
        assert_eq!(roll(1), roll(1));
        assert_ne!(roll(1), roll(2));
        assert!((3..=9).all(|n| roll(1).contains(&n)) && roll(1).iter().all(|n| (3..=9).contains(n)));
    }

    #[test]
    fn shuffling_keeps_every_item() {
        let mut items: Vec<u32> = (0..20).collect();
        Dice::new(1).shuffle(&mut items);
        assert!(!items.is_sorted());
        items.sort_unstable();
        assert_eq!(items, (0..20).collect::<Vec<u32>>());
    }
}
