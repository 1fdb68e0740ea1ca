//! Reads a member's metrics at `/metrics`.

use crate::http;
use std::net::ToSocketAddrs;
use std::time::Duration;

const HTTP_TIMEOUT: Duration = Duration::from_secs(5);

/// One answer of `/metrics`.
#[derive(Clone, Debug, Default)]
pub struct Metrics(String);

impl Metrics {
    /// Asks a member. The answer is empty if the member does not answer.
    pub fn ask(address: impl ToSocketAddrs) -> Metrics {
        Metrics(http::get(address, "/metrics", HTTP_TIMEOUT).unwrap_or_default())
    }

    /// Returns the value of a metric, or the sum over its labels; 0 while there is none.
    pub fn sum(&self, name: &str) -> f64 {
        // This is not `sum`, which returns -0 for an empty series.
        self.series(name).map(|(_, value)| value).fold(0.0, |sum, value| sum + value)
    }

    /// Returns the label set (text between the braces, empty if there is none) and value of each of a metric's
    /// series.
    fn series(&self, name: &str) -> impl Iterator<Item = (&str, f64)> {
        self.0.lines().filter_map(move |line| {
            let (labels, value) = line.strip_prefix(name)?.rsplit_once(' ')?;
            let labels = match labels {
                "" => "",
                braced => braced.strip_prefix('{')?.strip_suffix('}')?,
            };
            Some((labels, value.parse().ok()?))
        })
    }

    /// Returns the sum over a metric's series that have this label and value.
    pub fn sum_of(&self, name: &str, label: &str, value: &str) -> f64 {
        let wanted = format!("{label}=\"{value}\"");
        self.series(name)
            .filter(|(labels, _)| labels.split(',').any(|one| one == wanted))
            .map(|(_, value)| value)
            .fold(0.0, |sum, value| sum + value)
    }

    /// Returns a histogram's buckets: the upper bound, and the number of values at or below it.
    pub fn buckets(&self, name: &str) -> Vec<(f64, f64)> {
        let bucket = |(labels, count): (&str, f64)| {
            let bound = labels.split(',').find_map(|one| one.strip_prefix("le=\"")?.strip_suffix('"'))?;
            Some((bound.parse().ok()?, count))
        };
        self.series(&format!("{name}_bucket")).filter_map(bucket).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_sums_labels_and_buckets() {
        let text = "# TYPE a counter\na 3\nab 9\na_bucket{le=\"0.5\"} 1\na_bucket{le=\"+Inf\"} 2\nb{k=\"x\"} 1\nb{k=\"y\",l=\"z\"} 4\n";
        let metrics = Metrics(text.to_owned());
        assert_eq!((metrics.sum("a"), metrics.sum("b"), metrics.sum("c")), (3.0, 5.0, 0.0));
        assert_eq!((metrics.sum_of("b", "k", "y"), metrics.sum_of("b", "l", "x")), (4.0, 0.0));
        assert_eq!(metrics.buckets("a"), [(0.5, 1.0), (f64::INFINITY, 2.0)]);
    }
}
