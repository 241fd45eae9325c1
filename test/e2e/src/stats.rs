//! Figures of several runs.

/// Prints minimum, median and maximum.
pub fn print(what: &str, unit: &str, values: &[f64]) {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (Some(min), Some(max)) = (sorted.first(), sorted.last()) else {
        return;
    };
    let median = sorted[sorted.len() / 2];
    println!("  {what:<38} min {min:>8.1}  median {median:>8.1}  max {max:>8.1} {unit}");
}
