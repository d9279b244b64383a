//! Medians, not means: one slow outlier is a fact about the machine, not about the program.

use std::time::Duration;

/// Samples of one thing.
pub(crate) struct Samples(Vec<Duration>);

impl Samples {
    pub(crate) fn new(mut samples: Vec<Duration>) -> Self {
        samples.sort_unstable();
        Self(samples)
    }

    /// The value below which this share of the samples lies.
    pub(crate) fn at(&self, share: f64) -> Duration {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to len")]
        let i = ((self.0.len() as f64 - 1.0) * share).round() as usize;
        self.0.get(i).copied().unwrap_or_default()
    }

    pub(crate) fn median(&self) -> Duration {
        self.at(0.5)
    }

    pub(crate) fn row(&self, name: &str) -> String {
        format!(
            "{name:<44} {:>9.2} {:>9.2} {:>9.2}   n={}",
            millis(self.median()),
            millis(self.at(0.95)),
            millis(self.at(1.0)),
            self.0.len()
        )
    }
}

/// A figure beside what it must not exceed, and whether it does.
pub(crate) fn target(name: &str, figure: f64, most: f64) -> String {
    let met = if figure <= most { "met" } else { "NOT MET" };
    format!("{name:<44} {figure:>9.2} at most {most}: {met}")
}

pub(crate) fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

pub(crate) fn head(title: &str) {
    println!("\n{title:<44} {:>9} {:>9} {:>9}   (ms)", "median", "p95", "max");
}
