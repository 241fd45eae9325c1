//! Figures of several runs.

/// Prints minimum, median and maximum.
pub fn print(what: &str, unit: &str, values: &[f64]) {
    let sorted = sorted(values);
    let (Some(min), Some(max)) = (sorted.first(), sorted.last()) else {
        return;
    };
    let median = median(values);
    println!("  {what:<38} min {min:>8.1}  median {median:>8.1}  max {max:>8.1} {unit}");
}

/// The one in the middle; not a number when there is none.
pub fn median(values: &[f64]) -> f64 {
    let sorted = sorted(values);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

fn sorted(values: &[f64]) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}
