use std::time::Duration;

use proptest::prelude::*;

use super::{ByteSize, Count, TimeSpan, UnitError};

fn read<T: std::str::FromStr<Err = UnitError>>(text: &str) -> Result<T, String> {
    text.parse().map_err(|error: UnitError| error.to_string())
}

#[test]
fn counts_are_read() {
    for (text, value) in [
        ("0", 0),
        ("2000", 2_000),
        ("2_000", 2_000),
        ("512k", 512_000),
        ("1.5M", 1_500_000),
        (" 3 G ", 3_000_000_000),
        ("1.000k", 1_000),
        ("18446744073709551615", u64::MAX),
    ] {
        assert_eq!(read(text), Ok(Count(value)), "{text}");
    }
}

#[test]
fn byte_sizes_are_read() {
    for (text, value) in [
        ("4096", 4096),
        ("1B", 1),
        ("16MiB", 16 << 20),
        ("2 GiB", 2 << 30),
        ("1MB", 1_000_000),
        ("0.5KiB", 512),
        ("1.5TB", 1_500_000_000_000),
    ] {
        assert_eq!(read(text), Ok(ByteSize(value)), "{text}");
    }
}

#[test]
fn time_spans_are_read() {
    for (text, millis) in [
        ("90", 90_000),
        ("0.5", 500),
        ("90s", 90_000),
        ("30m", 1_800_000),
        ("1h30m", 5_400_000),
        ("1h 30m", 5_400_000),
        ("1.5h", 5_400_000),
        ("250ms", 250),
        ("2d", 172_800_000),
    ] {
        assert_eq!(
            read(text),
            Ok(TimeSpan(Duration::from_millis(millis))),
            "{text}"
        );
    }
}

#[test]
fn what_is_no_quantity_is_named() {
    let count = |text| read::<Count>(text).unwrap_err();
    assert_eq!(count(""), "it is empty");
    assert_eq!(count("many"), "`many` is not a number");
    assert_eq!(count("-5"), "`-5` is not a number");
    assert_eq!(count("1__0"), "`1__0` is not a number");
    assert_eq!(count("1.k"), "`1.` is not a number");
    assert_eq!(count("1.2.3"), "`1.2.3` is not a number");
    assert_eq!(count("512K"), "unknown unit `K`, expected `k`, `M` or `G`");
    assert_eq!(count("0.0005k"), "it is not a whole number of ones");
    assert_eq!(count("20000000000G"), "it is too large");
    assert_eq!(count(&"9".repeat(60)), "it is too large");
    let size = read::<ByteSize>("16M").unwrap_err();
    assert!(
        size.starts_with("unknown unit `M`, expected `B`, `KiB`"),
        "{size}"
    );
    let span = |text| read::<TimeSpan>(text).unwrap_err();
    assert_eq!(span("30m1h"), UnitError::Order.to_string());
    assert_eq!(span("1m1m"), UnitError::Order.to_string());
    assert_eq!(span("1h30"), "`30` has no unit");
    assert_eq!(span("h"), "`h` is not a number");
    assert_eq!(span("0.1ns"), "it is not a whole number of nanoseconds");
}

#[test]
fn spellings_are_short() {
    assert_eq!(Count(512_000).to_string(), "512k");
    assert_eq!(Count(500).to_string(), "500");
    assert_eq!(Count(0).to_string(), "0");
    assert_eq!(ByteSize(16 << 20).to_string(), "16MiB");
    assert_eq!(ByteSize(1_000_000).to_string(), "1MB");
    assert_eq!(ByteSize(1_500_001).to_string(), "1500001B");
    assert_eq!(ByteSize(0).to_string(), "0B");
    assert_eq!(TimeSpan::from_secs(600).to_string(), "10m");
    assert_eq!(TimeSpan::from_secs(90).to_string(), "90s");
    assert_eq!(TimeSpan::from_secs(3_601).to_string(), "1h1s");
    assert_eq!(TimeSpan(Duration::ZERO).to_string(), "0s");
    assert_eq!(
        format!("{:>6}|{:<6}|", Count(1_000), ByteSize(1 << 10)),
        "    1k|1KiB  |"
    );
}

#[test]
fn a_document_may_hold_numbers_or_strings() {
    let value = |text: &str| text.parse::<toml::Table>().unwrap()["x"].clone();
    assert_eq!(value("x = 2_000").try_into(), Ok(Count(2_000)));
    assert_eq!(value("x = '2k'").try_into(), Ok(Count(2_000)));
    assert_eq!(
        value("x = 0.25").try_into(),
        Ok(TimeSpan(Duration::from_millis(250)))
    );
    assert_eq!(value("x = 90").try_into(), Ok(TimeSpan::from_secs(90)));
    let message = |text: &str| {
        value(text)
            .try_into::<Count>()
            .unwrap_err()
            .message()
            .to_owned()
    };
    insta::assert_snapshot!(
        ["x = -1", "x = 1.5", "x = true", "x = '5x'", "x = []"].map(message).join("\n"),
        @r#"
    invalid value: integer `-1`, expected a count such as 2000 or "512k"
    invalid value: floating point `1.5`, expected a count such as 2000 or "512k"
    invalid type: boolean `true`, expected a count such as 2000 or "512k"
    `5x` is not a count such as 2000 or "512k": unknown unit `x`, expected `k`, `M` or `G`
    invalid type: sequence, expected a count such as 2000 or "512k"
    "#
    );
}

/// Whole multiples of every unit as well as arbitrary numbers.
fn amounts() -> impl Strategy<Value = u64> {
    let units = prop::sample::select(vec![1, 1_000, 1_000_000, 1_000_000_000, 1 << 10, 1 << 30]);
    prop_oneof![
        any::<u64>(),
        (0u64..5_000, units).prop_map(|(n, unit)| n * unit)
    ]
}

proptest! {
    #[test]
    fn every_spelling_reads_back(amount in amounts(), nanos in 0u32..1_000_000_000) {
        let (count, size) = (Count(amount), ByteSize(amount));
        prop_assert_eq!(count.to_string().parse(), Ok(count));
        prop_assert_eq!(size.to_string().parse(), Ok(size));
        for nanos in [0, nanos, nanos / 1_000_000 * 1_000_000] {
            let span = TimeSpan(Duration::new(amount, nanos));
            prop_assert_eq!(span.to_string().parse(), Ok(span));
        }
    }

    #[test]
    fn every_value_survives_toml_and_json(amount in amounts()) {
        let (count, size, span) = (Count(amount), ByteSize(amount), TimeSpan::from_secs(amount));
        prop_assert_eq!(toml::Value::try_from(count).unwrap().try_into(), Ok(count));
        prop_assert_eq!(toml::Value::try_from(size).unwrap().try_into(), Ok(size));
        prop_assert_eq!(toml::Value::try_from(span).unwrap().try_into(), Ok(span));
        let json = serde_json::to_string(&(count, size, span)).unwrap();
        let again: (Count, ByteSize, TimeSpan) = serde_json::from_str(&json).unwrap();
        prop_assert_eq!(again, (count, size, span));
    }

    #[test]
    fn no_text_makes_reading_panic(text in "[0-9._kMGiBhmsd ]{0,12}|.{0,8}") {
        let _ = (text.parse::<Count>(), text.parse::<ByteSize>(), text.parse::<TimeSpan>());
    }
}
