//! What can be asked of runs: how one stands, which there are, and what became of them.

use serde_json::Value;

use crate::fixture::Fixture;

#[test]
fn runs_are_listed_and_shown() {
    let fixture = Fixture::new();
    fixture.train("runs/one", &["--max-steps", "20"]).expect(0);
    let listed = fixture.run(&["runs", "ls"]).expect(0);
    let row = listed.stdout.lines().nth(1).unwrap();
    assert!(row.starts_with("one   done   20/20"), "{}", listed.stdout);
    let listed = fixture.run(&["runs", "ls", "--json"]).expect(0);
    let rows: Value = serde_json::from_str(&listed.stdout).unwrap();
    assert_eq!(rows[0]["name"], "one");
    assert_eq!(
        rows[0]["loss"].as_f64(),
        fixture.losses("runs/one").last().copied()
    );
    let shown = fixture.run(&["runs", "show", "one"]).expect(0).stdout;
    for text in [
        "one: done\n",
        "config    tiny.toml\n",
        "llama, dim 32, 2 layers",
        "2 ranks, cpu",
        "20 of 20, loss ",
        "validations\n",
        "checkpoints\n",
    ] {
        assert!(shown.contains(text), "`{text}` is not in:\n{shown}");
    }
    let newest = fixture.run(&["runs", "show", "--json"]).expect(0).stdout;
    let story: Value = serde_json::from_str(&newest).unwrap();
    assert_eq!(story["state"], "done");
    assert_eq!(story["checkpoints"][0]["step"], 10);
}

#[test]
fn who_asks_for_what_is_not_there_learns_what_to_ask_for() {
    let fixture = Fixture::new();
    let cases: [(&[&str], &[&str]); 5] = [
        (&["status"], &["there is no run in runs/", "cordee train"]),
        (
            &["status", "absent"],
            &["there is no run absent", "cordee runs ls"],
        ),
        (&["runs", "show", "."], &["is not a run directory"]),
        (&["runs", "ls"], &["runs", "cordee runs ls DIR"]),
        (&["runs", "ls", "."], &["there is no run in ."]),
    ];
    for (arguments, says) in cases {
        fixture.run(arguments).expect(2).says(says);
    }
}
