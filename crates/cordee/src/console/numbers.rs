//! Numbers as people read them: three or four digits and a unit.

/// A count or rate: `950`, `12.3k`, `1.6M`.
pub(crate) fn compact(number: f64) -> String {
    let mut scaled = number;
    for unit in ["", "k", "M", "G"] {
        // What rounds to 1000 belongs to the next unit.
        let limit = if unit.is_empty() { 999.5 } else { 999.95 };
        if scaled.abs() < limit || !scaled.is_finite() {
            let digits = usize::from(!unit.is_empty() || scaled.abs() < 99.95 && scaled != 0.0);
            return format!("{scaled:.digits$}{unit}");
        }
        scaled /= 1000.0;
    }
    format!("{scaled:.1}T")
}

/// A size: `640B`, `212MiB`, `61.2GiB`.
pub fn bytes(count: u64) -> String {
    if count < 1024 {
        return format!("{count}B");
    }
    let mut scaled = count as f64 / 1024.0;
    for unit in ["KiB", "MiB", "GiB"] {
        if scaled < 1023.5 {
            return format!("{}{unit}", three_digits(scaled));
        }
        scaled /= 1024.0;
    }
    format!("{}TiB", three_digits(scaled))
}

/// A time that matters to the hundredth: `0.33s`, `12.5s`, `3m20s`.
pub(super) fn seconds(time: f64) -> String {
    if time < 99.95 {
        format!("{}s", three_digits(time))
    } else {
        duration(time)
    }
}

/// A time that matters to the second, in its two largest units: `38s`, `1m38s`, `6h38m`, `2d04h`.
pub(crate) fn duration(time: f64) -> String {
    if !time.is_finite() {
        return "unknown".to_owned();
    }
    let total = time.max(0.0).round() as u64;
    let (minutes, hours, days) = (total / 60, total / 3600, total / 86400);
    match total {
        0..60 => format!("{total}s"),
        60..3600 => format!("{minutes}m{:02}s", total % 60),
        3600..86400 => format!("{hours}h{:02}m", minutes % 60),
        _ => format!("{days}d{:02}h", hours % 24),
    }
}

/// A norm: `0.81`, `12.34`, and in powers of ten where that would be long or say nothing.
pub(super) fn norm(number: f64) -> String {
    let plain = !number.is_finite() || number == 0.0 || (0.005..999.995).contains(&number);
    if plain {
        format!("{number:.2}")
    } else {
        format!("{number:.1e}")
    }
}

/// A share in percent with one digit: `2.1`.
pub(super) fn percent(part: f64, whole: f64) -> String {
    if part.is_nan() {
        "--".to_owned()
    } else if whole > 0.0 {
        format!("{:.1}", 100.0 * part / whole)
    } else {
        "0.0".to_owned()
    }
}

/// Ranks in ascending order, runs of them shortened: `0-3,7`.
pub(super) fn ranks(ranks: &[usize]) -> String {
    let mut runs: Vec<(usize, usize)> = vec![];
    for &rank in ranks {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == rank => *last = rank,
            _ => runs.push((rank, rank)),
        }
    }
    let texts = runs.into_iter().map(|(first, last)| match last - first {
        0 => first.to_string(),
        _ => format!("{first}-{last}"),
    });
    texts.collect::<Vec<_>>().join(",")
}

fn three_digits(number: f64) -> String {
    let digits = match number {
        ..9.995 => 2,
        ..99.95 => 1,
        _ => 0,
    };
    format!("{number:.digits$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_have_one_digit_behind_the_point_and_change_units_where_they_round() {
        let cases = [
            (0.0, "0"),
            (7.25, "7.2"),
            (99.96, "100"),
            (950.0, "950"),
            (999.6, "1.0k"),
            (12_345.0, "12.3k"),
            (412_310.0, "412.3k"),
            (999_960.0, "1.0M"),
            (1.6e6, "1.6M"),
            (3.1e9, "3.1G"),
            (2.5e12, "2.5T"),
            (f64::NAN, "NaN"),
            (f64::INFINITY, "inf"),
        ];
        for (number, text) in cases {
            assert_eq!(compact(number), text);
        }
    }

    #[test]
    fn sizes_have_three_digits() {
        let cases = [
            (0, "0B"),
            (1023, "1023B"),
            (1536, "1.50KiB"),
            (212 << 20, "212MiB"),
            ((1 << 30) - 1, "1.00GiB"),
            ((61 << 30) + (205 << 20), "61.2GiB"),
            (3 << 40, "3.00TiB"),
        ];
        for (count, text) in cases {
            assert_eq!(bytes(count), text);
        }
    }

    #[test]
    fn times_have_two_units() {
        let cases = [
            (-1.0, "0s"),
            (37.6, "38s"),
            (59.6, "1m00s"),
            (98.0, "1m38s"),
            (3599.7, "1h00m"),
            (23_880.0, "6h38m"),
            (187_200.0, "2d04h"),
            (f64::INFINITY, "unknown"),
        ];
        for (time, text) in cases {
            assert_eq!(duration(time), text);
        }
        assert_eq!(
            [0.0, 0.334, 9.996, 12.5, 99.96, 200.0].map(seconds),
            ["0.00s", "0.33s", "10.0s", "12.5s", "1m40s", "3m20s"]
        );
    }

    #[test]
    fn norms_and_shares_never_say_nothing() {
        assert_eq!(
            [0.0, 0.81, 12.345, 1e-4, 5e6, f64::NAN].map(norm),
            ["0.00", "0.81", "12.35", "1.0e-4", "5.0e6", "NaN"]
        );
        assert_eq!(percent(0.007, 0.33), "2.1");
        assert_eq!(percent(0.0, 0.0), "0.0");
        assert_eq!(percent(f64::NAN, 0.33), "--");
    }

    #[test]
    fn neighbouring_ranks_become_a_range() {
        assert_eq!(ranks(&[2]), "2");
        assert_eq!(ranks(&[0, 1, 2, 3, 7, 9, 10]), "0-3,7,9-10");
    }
}
