//! What has to be alike on all nodes, and who is odd where it is not.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

/// What has to be alike on all nodes: names and values, in the order in which differences are told.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Fingerprint(Vec<(String, String)>);

impl Fingerprint {
    /// Of these names and values.
    pub fn new(entries: impl IntoIterator<Item = (impl Into<String>, impl Into<String>)>) -> Self {
        let entries = entries.into_iter();
        Self(
            entries
                .map(|(name, value)| (name.into(), value.into()))
                .collect(),
        )
    }

    fn value(&self, name: &str) -> &str {
        let entry = self.0.iter().find(|(given, _)| given == name);
        entry.map_or("(nothing)", |(_, value)| value)
    }
}

/// Nodes of a job are not alike.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mismatch {
    /// Nodes that most others are not like, with their hosts; empty where there is no majority.
    pub odd: Vec<(usize, String)>,
    /// What differs, in the order of the fingerprint.
    pub differences: Vec<Difference>,
}

/// One thing that differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// What it is.
    pub name: String,
    /// Each value, and the nodes that have it; the value of most nodes first.
    pub values: Vec<(String, Vec<usize>)>,
}

/// Differences that are told; where more differ, the first ones explain the others.
const TOLD: usize = 4;

/// Compares nodes: index, host, fingerprint. `None` where all are alike.
pub(super) fn compare(nodes: &[(usize, &str, &Fingerprint)]) -> Option<Mismatch> {
    let mut groups = BTreeMap::<&Fingerprint, usize>::new();
    for (_, _, fingerprint) in nodes {
        *groups.entry(fingerprint).or_default() += 1;
    }
    if groups.len() < 2 {
        return None;
    }
    let majority = groups.iter().find(|(_, count)| **count * 2 > nodes.len());
    let odd = majority.map_or_else(Vec::new, |(usual, _)| {
        let odd = nodes.iter().filter(|(_, _, it)| it != usual);
        odd.map(|(node, host, _)| (*node, (*host).to_owned()))
            .collect()
    });
    let mut names: Vec<&str> = Vec::new();
    for (name, _) in nodes.iter().flat_map(|(_, _, it)| &it.0) {
        if !names.contains(&name.as_str()) {
            names.push(name);
        }
    }
    let differences: Vec<_> = names
        .into_iter()
        .filter_map(|name| difference(name, nodes))
        .collect();
    // The same entries in another order are no difference.
    (!differences.is_empty()).then_some(Mismatch { odd, differences })
}

fn difference(name: &str, nodes: &[(usize, &str, &Fingerprint)]) -> Option<Difference> {
    let mut values = BTreeMap::<&str, Vec<usize>>::new();
    for (node, _, fingerprint) in nodes {
        values
            .entry(fingerprint.value(name))
            .or_default()
            .push(*node);
    }
    let mut values: Vec<_> = values
        .into_iter()
        .map(|(value, nodes)| (value.to_owned(), nodes))
        .collect();
    values.sort_by_key(|(_, nodes)| (std::cmp::Reverse(nodes.len()), nodes.first().copied()));
    (values.len() > 1).then(|| Difference {
        name: name.to_owned(),
        values,
    })
}

impl fmt::Display for Mismatch {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.odd.as_slice() {
            [] => formatter.write_str("the nodes are not alike")?,
            [(node, host)] => {
                let role = if *node == 0 { ", the coordinator" } else { "" };
                write!(
                    formatter,
                    "node {node} ({host}{role}) is not like the others"
                )?;
            }
            more => {
                let nodes: Vec<_> = more.iter().map(|(node, _)| *node).collect();
                write!(formatter, "{} are not like the others", named(&nodes))?;
            }
        }
        for (place, difference) in self.differences.iter().take(TOLD).enumerate() {
            formatter.write_str(if place == 0 { ": " } else { "; " })?;
            write!(formatter, "{} is ", difference.name)?;
            for (place, (value, nodes)) in difference.values.iter().enumerate() {
                let comma = if place == 0 { "" } else { ", " };
                write!(formatter, "{comma}{value} on {}", named(nodes))?;
            }
        }
        match self.differences.len().saturating_sub(TOLD) {
            0 => Ok(()),
            more => write!(formatter, "; and {more} more"),
        }
    }
}

/// `node 3`, or `nodes 0-2, 5`.
pub(super) fn named(nodes: &[usize]) -> String {
    let word = if nodes.len() == 1 { "node" } else { "nodes" };
    format!("{word} {}", ranges(nodes))
}

/// `0-2, 5` of ascending numbers.
fn ranges(numbers: &[usize]) -> String {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for &number in numbers {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == number => *last = number,
            _ => runs.push((number, number)),
        }
    }
    let texts: Vec<_> = runs
        .into_iter()
        .map(|(first, last)| match last - first {
            0 => first.to_string(),
            1 => format!("{first}, {last}"),
            _ => format!("{first}-{last}"),
        })
        .collect();
    texts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(version: &str, config: &str) -> Fingerprint {
        Fingerprint::new([("version", version), ("config", config)])
    }

    fn told(nodes: &[Fingerprint]) -> Option<String> {
        let hosts = ["a", "b", "c", "d", "e"];
        let nodes: Vec<_> = nodes
            .iter()
            .enumerate()
            .map(|(node, it)| (node, hosts[node], it))
            .collect();
        compare(&nodes).map(|mismatch| mismatch.to_string())
    }

    #[test]
    fn the_odd_node_is_named_where_there_is_a_majority() {
        let (usual, other) = (of("1", "aa"), of("1", "bb"));
        let three = |odd: usize| {
            let mut nodes = vec![usual.clone(); 3];
            nodes[odd] = other.clone();
            told(&nodes).unwrap()
        };
        assert_eq!(
            three(2),
            "node 2 (c) is not like the others: config is aa on nodes 0, 1, bb on node 2"
        );
        assert_eq!(
            three(0),
            "node 0 (a, the coordinator) is not like the others: config is aa on nodes 1, 2, bb on node 0"
        );
        assert_eq!(told(&vec![usual; 5]), None);
    }

    #[test]
    fn without_a_majority_all_values_are_told() {
        let nodes = [of("1", "aa"), of("2", "bb")];
        assert_eq!(
            told(&nodes).unwrap(),
            "the nodes are not alike: version is 1 on node 0, 2 on node 1; config is aa on node 0, bb on node 1"
        );
        let lacking = [of("1", "aa"), Fingerprint::new([("version", "1")])];
        assert_eq!(
            told(&lacking).unwrap(),
            "the nodes are not alike: config is aa on node 0, (nothing) on node 1"
        );
        let turned = [
            of("1", "aa"),
            Fingerprint::new([("config", "aa"), ("version", "1")]),
        ];
        assert_eq!(told(&turned), None);
    }

    #[test]
    fn numbers_in_a_row_are_a_range() {
        assert_eq!(named(&[7]), "node 7");
        assert_eq!(named(&[0, 1, 2, 5, 6, 8]), "nodes 0-2, 5, 6, 8");
    }
}
