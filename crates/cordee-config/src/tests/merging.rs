//! The algebra of merging.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use proptest::prelude::*;
use toml::Value;

use crate::{
    source::{Place, Source, SourceKind},
    tree::{Content, Entry, Node, Table, find, merge},
};

/// A tree as the schema allows them: what is a table in one layer is a table in all, what is a
/// value is a value in all. Every place tells the layer.
fn tree(layer: usize, depth: u32) -> BoxedStrategy<Table> {
    let kind = if layer == 2 {
        SourceKind::Set
    } else {
        SourceKind::File(PathBuf::from("f.toml"))
    };
    let place = Place {
        source: Arc::new(Source {
            kind,
            text: String::new(),
        }),
        span: layer..layer,
    };
    let node = {
        let place = place.clone();
        move |content| Node {
            place: place.clone(),
            content,
        }
    };
    let scalar = (0i64..4).prop_map(|value| Content::Scalar(Value::Integer(value)));
    let array = {
        let node = node.clone();
        prop::collection::vec(0i64..4, 0..3).prop_map(move |values| {
            let scalar = |value| node(Content::Scalar(Value::Integer(value)));
            Content::Array(values.into_iter().map(scalar).collect())
        })
    };
    let named =
        |prefix: &'static str| (0usize..3).prop_map(move |index| format!("{prefix}{index}"));
    let leaf = (named("leaf"), prop_oneof![scalar, array]);
    let entry = if depth == 0 {
        leaf.boxed()
    } else {
        let table = tree(layer, depth - 1).prop_map(Content::Table);
        prop_oneof![leaf, (named("table"), table)].boxed()
    };
    let entry = entry.prop_map(move |(name, content)| {
        (
            name,
            Entry {
                key: place.clone(),
                node: node(content),
            },
        )
    });
    prop::collection::vec(entry, 0..5)
        .prop_map(|entries| entries.into_iter().collect())
        .boxed()
}

fn on_top(mut base: Table, over: &Table) -> Table {
    merge(&mut base, over.clone());
    base
}

/// The paths of all leaves.
fn leaves(table: &Table, path: &str, found: &mut BTreeMap<String, Node>) {
    for (name, entry) in table {
        let path = format!("{path}{name}");
        match &entry.node.content {
            Content::Table(table) => leaves(table, &format!("{path}."), found),
            _ => drop(found.insert(path, entry.node.clone())),
        }
    }
}

proptest! {
    #[test]
    fn merging_is_associative(a in tree(0, 2), b in tree(1, 2), c in tree(2, 2)) {
        let left = on_top(on_top(a.clone(), &b), &c);
        let right = on_top(a, &on_top(b, &c));
        prop_assert_eq!(left, right);
    }

    #[test]
    fn an_empty_layer_and_a_repeated_one_change_nothing(a in tree(0, 2)) {
        prop_assert_eq!(&on_top(a.clone(), &Table::new()), &a);
        prop_assert_eq!(&on_top(Table::new(), &a), &a);
        prop_assert_eq!(&on_top(a.clone(), &a), &a);
    }

    #[test]
    fn a_leaf_is_that_of_the_last_layer_that_has_it(a in tree(0, 2), b in tree(1, 2), c in tree(2, 2)) {
        let mut expected = BTreeMap::new();
        for layer in [&a, &b, &c] {
            leaves(layer, "", &mut expected);
        }
        let merged = on_top(on_top(a, &b), &c);
        let mut found = BTreeMap::new();
        leaves(&merged, "", &mut found);
        prop_assert_eq!(&found, &expected);
        for (path, node) in &expected {
            prop_assert_eq!(find(&merged, path).map(|(_, node)| node), Some(node));
        }
    }
}
