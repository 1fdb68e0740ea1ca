//! Medians, quantiles of delays, and their formats.

/// Bytes in a MiB.
pub const MIB: f64 = (1 << 20) as f64;

/// Returns the middle figure, or the mean of the two middle ones if there are two. Returns `None` without figures.
pub fn median(figures: impl Iterator<Item = f64>) -> Option<f64> {
    let mut figures: Vec<f64> = figures.collect();
    figures.sort_by(f64::total_cmp);
    let (low, high) = (figures.get(figures.len().checked_sub(1)? / 2)?, figures.get(figures.len() / 2)?);
    Some((low + high) / 2.0)
}

/// Returns a whole number with a comma between each three digits.
pub fn thousands(figure: f64) -> String {
    let digits = format!("{figure:.0}");
    let comma = |(index, digit): (usize, char)| {
        let separated = index > 0 && (digits.len() - index).is_multiple_of(3);
        separated.then_some(',').into_iter().chain([digit])
    };
    digits.chars().enumerate().flat_map(comma).collect()
}

/// Returns the processors, for later readers of the figures.
pub fn machine() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    let model = model.map_or("an unknown processor", |(_, model)| model.trim());
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    format!("{cores} cores of {model}")
}

/// Width of a bucket of [`Delays`], in ms.
const STEP_MS: u64 = 10;

/// Delays of many events, to 10 ms.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Delays {
    /// Events in each step of [`STEP_MS`].
    steps: Vec<u64>,
}

impl Delays {
    /// Takes one event's delay, in milliseconds.
    pub fn record(&mut self, delay_ms: u64) {
        let step = (delay_ms / STEP_MS) as usize;
        if step >= self.steps.len() {
            self.steps.resize(step + 1, 0);
        }
        self.steps[step] += 1;
    }

    /// Returns the delays of both together.
    #[must_use]
    pub fn plus(&self, other: &Delays) -> Delays {
        let at = |delays: &Delays, step: usize| delays.steps.get(step).copied().unwrap_or(0);
        let longest = self.steps.len().max(other.steps.len());
        Delays { steps: (0..longest).map(|step| at(self, step) + at(other, step)).collect() }
    }

    /// Returns the delay, in milliseconds, that this share of the events (0 to 1) does not exceed. Returns `None`
    /// without events.
    pub fn quantile_ms(&self, share: f64) -> Option<u64> {
        let wanted = (self.steps.iter().sum::<u64>() as f64 * share).ceil().max(1.0) as u64;
        let mut passed = 0;
        let step = self.steps.iter().position(|events| {
            passed += events;
            passed >= wanted
        })?;
        Some((step as u64 + 1) * STEP_MS)
    }
}

/// Returns the least upper bound of a histogram's buckets that this share of its values does not exceed. A bucket has
/// its bound, and the number of values at or below it. Returns `None` without values.
pub fn bucket_quantile(buckets: &[(f64, f64)], share: f64) -> Option<f64> {
    let all = buckets.iter().map(|(_, count)| *count).fold(0.0, f64::max);
    buckets.iter().find(|(_, count)| all > 0.0 && *count >= all * share).map(|(bound, _)| *bound)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_thousands() {
        assert_eq!(median([].into_iter()), None);
        assert_eq!(median([3.0, 1.0, 2.0].into_iter()), Some(2.0));
        assert_eq!(median([4.0, 1.0].into_iter()), Some(2.5));
        assert_eq!([thousands(7.0), thousands(1_000.4), thousands(1_234_567.0)], ["7", "1,000", "1,234,567"]);
    }

    #[test]
    fn quantiles_are_upper_bounds() {
        let mut delays = Delays::default();
        assert_eq!(delays.quantile_ms(0.5), None);
        (0..100).for_each(|ms| delays.record(ms * 10));
        assert_eq!(
            (delays.quantile_ms(0.5), delays.quantile_ms(0.99), delays.quantile_ms(1.0)),
            (Some(500), Some(990), Some(1_000))
        );
        let mut late = Delays::default();
        late.record(5_003);
        assert_eq!(delays.plus(&late).quantile_ms(1.0), Some(5_010));
    }

    #[test]
    fn a_histograms_quantile_is_a_bound_of_its_buckets() {
        let buckets = [(0.1, 10.0), (1.0, 99.0), (f64::INFINITY, 100.0)];
        assert_eq!((bucket_quantile(&buckets, 0.5), bucket_quantile(&buckets, 0.99)), (Some(1.0), Some(1.0)));
        assert_eq!((bucket_quantile(&buckets, 1.0), bucket_quantile(&[(1.0, 0.0)], 0.5)), (Some(f64::INFINITY), None));
    }
}
