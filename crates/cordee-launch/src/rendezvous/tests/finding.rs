//! How agents find the coordinator, and what they say when they do not.

use std::{io::Write, net::TcpListener, thread};

use super::*;

fn refusing() -> String {
    // Bound and let go again: nobody listens there.
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.local_addr().unwrap().to_string()
}

fn meeting(job: &str, addresses: Vec<String>) -> MeetingFile {
    MeetingFile {
        job: job.to_owned(),
        secret: Secret::random().unwrap(),
        addresses,
        started: 0,
    }
}

#[test]
fn a_stale_meeting_file_is_read_again_until_there_is_a_new_one() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("meeting.json");
    meeting("job", vec![refusing()]).write(&path).unwrap();
    let joining = joining(1, Meet::File(path.clone()));
    let agent = thread::spawn(move || Agent::join(&joining).unwrap());
    let secret = Secret::random().unwrap();
    // Of the same job with another secret, and where nobody knows either.
    let (_other, _, address) = coordinator();
    meeting("job", vec![address.to_string()])
        .write(&path)
        .unwrap();
    let options = CoordinatorOptions {
        meeting_file: Some(path.clone()),
        ..options(&secret)
    };
    let right = Coordinator::start(options).unwrap();
    let agent = agent.join().unwrap();
    assert_eq!(agent.coordinator(), place(&right));
    assert_eq!(agent.local_address(), Ipv4Addr::LOCALHOST);
}

#[test]
fn who_finds_nobody_says_what_was_tried_and_what_came_of_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("meeting.json");
    let short = |meet| JoinOptions {
        join_timeout: Duration::from_millis(1500),
        ..joining(1, meet)
    };
    let fail = || {
        let error = Agent::join(&short(Meet::File(path.clone()))).err().unwrap();
        assert_eq!(error.exit_code(), 96);
        error.to_string()
    };
    assert!(fail().contains("meeting.json: not there, or not written yet"));
    meeting("other", vec![]).write(&path).unwrap();
    assert!(fail().contains("it is of another job, other"));

    let http = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let web = http.local_addr().unwrap();
    let serving = thread::spawn(move || {
        while let Ok((mut stream, _)) = http.accept() {
            let mut byte = [0];
            if std::io::Read::read(&mut stream, &mut byte).is_ok_and(|len| len == 0) {
                break;
            }
            let _ = write!(
                stream,
                "HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 30\r\n\r\nno such protocol, and no more"
            );
        }
    });
    let silent = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let (_other, _, stranger) = coordinator();
    let refusing = refusing();
    let addresses = vec![
        refusing.clone(),
        web.to_string(),
        stranger.to_string(),
        silent.local_addr().unwrap().to_string(),
        "nobody.invalid:7".to_owned(),
    ];
    meeting("job", addresses).write(&path).unwrap();
    let text = fail();
    for told in [
        format!("{refusing}: refused: nobody listens there"),
        format!("{web}: the other end is no cordee"),
        format!("{stranger}: the other end does not know this job's secret"),
        "nobody.invalid:7: ".to_owned(),
        format!("{}: no answer in time", silent.local_addr().unwrap()),
    ] {
        assert!(text.contains(&told), "{told}\n{text}");
    }
    drop(std::net::TcpStream::connect(web));
    serving.join().unwrap();
}

#[test]
fn a_known_address_needs_no_file_and_its_coordinator_may_come_later() {
    let address = refusing();
    let port = address.rsplit(':').next().unwrap();
    let secret = Secret::of_text("from the environment");
    let meet = Meet::At {
        address: format!("localhost:{port}"),
        secret: secret.clone(),
    };
    let joining = joining(1, meet);
    let agent = thread::spawn(move || Agent::join(&joining).unwrap());
    let options = CoordinatorOptions {
        bind: Some(address.parse().unwrap()),
        ..options(&secret)
    };
    let _coordinator = Coordinator::start(options).unwrap();
    agent.join().unwrap();
}

#[test]
fn a_port_that_is_taken_is_told() {
    let (_first, secret, address) = coordinator();
    let again = CoordinatorOptions {
        bind: Some(address),
        ..options(&secret)
    };
    let error = Coordinator::start(again).err().unwrap();
    assert!(error.to_string().contains(&address.to_string()));
    assert!(
        error
            .hint()
            .unwrap()
            .contains("another process has the port")
    );
    assert_eq!(error.exit_code(), 3);
}
