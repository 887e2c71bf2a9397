//! A stable hash of what decides a run's result.
//!
//! Stable means: the same on every machine and in every later version, so that a checkpoint can be
//! held against the config it is resumed with. The text that is hashed therefore has a form of its
//! own, and adding a key to the schema is the only thing that changes it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
};

use toml::{Table, Value};

use crate::{
    describe::{Section, Shape},
    names::{join, root, schema_path},
    render::{spell, values},
    schema::Config,
};

/// Sections and keys that change when, where or how often something happens, but no weight.
const WITHOUT_EFFECT: &[&str] = &[
    "data.cache_dir",
    "train.recompute",
    "parallel.threads",
    "parallel.shard",
    "parallel.overlap",
    "parallel.timeout",
    "checkpoint",
    "eval",
    "launch",
    "log",
];

/// The fingerprint of a resolved config, as 32 hexadecimal digits.
///
/// Of a path only its presence counts: the same data may lie elsewhere on another machine, and its
/// content has a hash of its own.
pub(crate) fn fingerprint(config: &Config) -> String {
    format!("{:032x}", fnv1a_128(decisive(config).as_bytes()))
}

/// Every value that decides the result, by its key: what [`differences`] compares.
pub fn decisive_values(config: &Config) -> Vec<(String, String)> {
    let text = decisive(config);
    let pairs = text.lines().filter_map(|line| line.split_once('='));
    pairs
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}

/// What two configs decide differently, as `key: before -> after`.
pub fn differences(before: &Config, after: &Config) -> Vec<String> {
    let (before, after) = (decisive(before), decisive(after));
    let entries = |text: &str| -> BTreeMap<String, String> {
        let pairs = text.lines().filter_map(|line| line.split_once('='));
        pairs
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect()
    };
    let (before, after) = (entries(&before), entries(&after));
    let keys: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    let value = |side: &BTreeMap<String, String>, key| {
        side.get(key)
            .cloned()
            .unwrap_or_else(|| "not set".to_owned())
    };
    keys.into_iter()
        .filter(|key| before.get(*key) != after.get(*key))
        .map(|key| format!("{key}: {} -> {}", value(&before, key), value(&after, key)))
        .collect()
}

/// Everything that decides the result, a line each.
fn decisive(config: &Config) -> String {
    let mut text = String::from("cordee config 1\n");
    describe(&mut text, "", root(), &values(config));
    text
}

/// Writes `path=value` for each leaf that has a value, in the order of the names.
fn describe(text: &mut String, path: &str, section: &'static Section, table: &Table) {
    let mut keys: Vec<_> = section.keys.iter().collect();
    keys.sort_by_key(|key| key.name);
    for key in keys {
        let path = join(path, key.name);
        let Some(value) = table.get(key.name) else {
            continue;
        };
        if WITHOUT_EFFECT.contains(&schema_path(&path).as_str()) {
            continue;
        }
        match (key.shape, value) {
            (Shape::Section(section), Value::Table(table)) => describe(text, &path, section, table),
            (Shape::Sections(section), Value::Array(elements)) => {
                for (index, element) in elements.iter().enumerate() {
                    let Value::Table(table) = element else {
                        continue;
                    };
                    describe(text, &format!("{path}.{index}"), section, table);
                }
            }
            (Shape::Leaf(leaf), _) if leaf.is_path => write_line(text, &path, "given"),
            _ => write_line(text, &path, &spell(value)),
        }
    }
}

fn write_line(text: &mut String, path: &str, value: &str) {
    writeln!(text, "{path}={value}").expect("a string takes any text");
}

/// FNV-1a with 128 bits (draft-eastlake-fnv, section 5): it tells configs apart, and need not
/// withstand an attack.
fn fnv1a_128(bytes: &[u8]) -> u128 {
    const OFFSET: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
    bytes.iter().fold(OFFSET, |hash, byte| {
        (hash ^ u128::from(*byte)).wrapping_mul(PRIME)
    })
}

#[cfg(test)]
mod tests {
    use super::fnv1a_128;

    #[test]
    fn the_hash_is_fnv_1a() {
        assert_eq!(fnv1a_128(b"a"), 0xd228_cb69_6f1a_8caf_7891_2b70_4e4a_8964);
        assert_eq!(
            fnv1a_128(b"foobar"),
            0x343e_1662_793c_64bf_6f0d_3597_ba44_6f18
        );
    }
}
