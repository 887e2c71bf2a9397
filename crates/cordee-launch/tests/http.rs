//! The page over HTTP, asked by clients that behave and by clients that do not.

#![expect(clippy::unwrap_used, reason = "the whole file is a test")]

use std::{
    io::{BufRead, BufReader, ErrorKind, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    process::{Command, Stdio},
    sync::{
        Arc, Mutex,
        mpsc::{Receiver, Sender, channel},
    },
    time::{Duration, Instant},
};

use cordee_launch::{Health, HttpPage, MetricsText, PageContent, PageError};
use serde_json::{Value, json};

/// More than the system keeps for a connection that nobody reads.
const LARGE: usize = 32 << 20;
/// For clients that must not wait for the page.
const PROMPT: Duration = Duration::from_secs(1);
/// For clients that wait for the page to lose patience with them.
const LATE: Duration = Duration::from_secs(20);

/// A page with a large answer, and health that a test may take from it.
#[derive(Debug, Default)]
struct Content {
    fault: Mutex<Option<String>>,
}

impl PageContent for Content {
    fn health(&self) -> Health {
        let fault = self.fault.lock().unwrap();
        fault.clone().map_or_else(Health::good, Health::bad)
    }

    fn status(&self) -> Value {
        json!({"step": 7, "padding": "x".repeat(LARGE)})
    }

    fn metrics(&self, _: &str) -> MetricsText {
        MetricsText {
            content_type: "text/plain; version=0.0.4; charset=utf-8",
            text: "cordee_up 1\n".to_owned(),
        }
    }
}

fn serve(content: Arc<dyn PageContent>) -> HttpPage {
    HttpPage::serve(SocketAddr::from(([127, 0, 0, 1], 0)), content).unwrap()
}

fn connect(page: &HttpPage) -> TcpStream {
    let stream = TcpStream::connect(page.local_addr()).unwrap();
    stream.set_read_timeout(Some(LATE)).unwrap();
    stream.set_write_timeout(Some(LATE)).unwrap();
    stream
}

/// Sends bytes and reads all that is answered.
fn exchange(page: &HttpPage, sent: &[u8]) -> String {
    let mut stream = connect(page);
    stream.write_all(sent).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    String::from_utf8(answer).unwrap()
}

/// A request as clients send it: the head of the answer, and its body.
fn ask(page: &HttpPage, line: &str) -> (String, String) {
    let request = format!("{line} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let answer = exchange(page, request.as_bytes());
    let (head, body) = answer.split_once("\r\n\r\n").expect("an answer has a head");
    (format!("{head}\r\n"), body.to_owned())
}

/// How long a plain request takes, which must be answered.
fn plain_request(page: &HttpPage) -> Duration {
    let began = Instant::now();
    let (head, body) = ask(page, "GET /healthz");
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert_eq!(body, "ok\n");
    began.elapsed()
}

#[test]
fn every_path_answers() {
    let content = Arc::new(Content::default());
    let page = serve(Arc::clone(&content) as Arc<dyn PageContent>);
    plain_request(&page);
    *content.fault.lock().unwrap() = Some("rank 3 hangs".to_owned());
    let (head, body) = ask(&page, "GET /healthz");
    assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
    assert_eq!(body, "rank 3 hangs\n");

    let (head, body) = ask(&page, "GET /metrics");
    assert!(
        head.contains("\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n"),
        "{head}"
    );
    assert_eq!(body, "cordee_up 1\n");

    let (head, body) = ask(&page, "GET /status?pretty");
    assert!(
        head.contains("\r\nContent-Type: application/json\r\n"),
        "{head}"
    );
    assert_eq!(serde_json::from_str::<Value>(&body).unwrap()["step"], 7);
}

#[test]
fn other_paths_and_methods_are_refused_in_words() {
    let page = serve(Arc::new(Content::default()));
    for path in ["/", "/metric", "/status/x"] {
        let (head, body) = ask(&page, &format!("GET {path}"));
        assert!(head.starts_with("HTTP/1.1 404 "), "{head}");
        let named = ["/healthz", "/metrics", "/status"];
        assert!(named.iter().all(|path| body.contains(path)), "{body}");
    }
    for method in ["POST", "PUT", "DELETE", "OPTIONS", "TRACE"] {
        let (head, _) = ask(&page, &format!("{method} /metrics"));
        assert!(head.starts_with("HTTP/1.1 405 "), "{head}");
        assert!(head.contains("\r\nAllow: GET, HEAD\r\n"), "{head}");
    }
}

#[test]
fn head_is_get_without_the_body() {
    let page = serve(Arc::new(Content::default()));
    for path in ["/healthz", "/metrics", "/status", "/other"] {
        let (head, body) = ask(&page, &format!("HEAD {path}"));
        assert_eq!(head, ask(&page, &format!("GET {path}")).0);
        assert_eq!(body, "");
    }
}

#[test]
fn clients_that_send_nothing_hold_up_nobody() {
    let page = serve(Arc::new(Content::default()));
    let mut idle: Vec<_> = (0..100).map(|_| connect(&page)).collect();
    for stream in idle.iter_mut().step_by(2) {
        // The page may have closed it for another already.
        let _ = stream.write_all(b"GET /healthz HTTP/1.1\r\nHost:");
    }
    assert!(plain_request(&page) < PROMPT);
    // All came before the request and it was answered, so all were let in; few of them were kept.
    let is_open = |stream: &mut TcpStream| {
        stream.set_nonblocking(true).unwrap();
        matches!(stream.read(&mut [0]), Err(error) if error.kind() == ErrorKind::WouldBlock)
    };
    let open = idle
        .iter_mut()
        .filter_map(|it| is_open(it).then_some(()))
        .count();
    assert!((1..=32).contains(&open), "{open} are open");
}

#[test]
fn clients_that_read_nothing_hold_up_nobody() {
    let page = serve(Arc::new(Content::default()));
    let deaf: Vec<_> = (0..3)
        .map(|_| {
            let mut stream = connect(&page);
            stream.write_all(b"GET /status HTTP/1.0\r\n\r\n").unwrap();
            stream
        })
        .collect();
    for stream in &deaf {
        // Its answer is under way.
        assert_eq!(stream.peek(&mut [0]).unwrap(), 1);
    }
    assert!(plain_request(&page) < PROMPT);
}

#[test]
fn the_page_loses_patience() {
    let page = serve(Arc::new(Content::default()));
    let (mut idle, mut deaf) = (connect(&page), connect(&page));
    deaf.write_all(b"GET /status HTTP/1.0\r\n\r\n").unwrap();
    deaf.peek(&mut [0]).unwrap();
    // It comes last, so its time is up last, however often it sends something.
    let (mut dripping, began) = (connect(&page), Instant::now());
    while dripping.write_all(b"x").is_ok() {
        assert!(began.elapsed() < LATE);
        // A wait between bytes is what this client is about.
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(
        idle.read(&mut [0]).unwrap(),
        0,
        "it is closed, not answered"
    );
    let mut answer = Vec::new();
    let _ = deaf.read_to_end(&mut answer);
    assert!(answer.len() < LARGE, "the answer was cut off");
}

#[test]
fn what_is_too_long_is_refused_and_the_refusal_arrives() {
    let page = serve(Arc::new(Content::default()));
    let refused = |request: &str| {
        let answer = exchange(&page, request.as_bytes());
        assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
    };
    refused(&format!(
        "GET /metrics HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n",
        "x".repeat(1 << 20)
    ));
    refused(&format!(
        "GET /{} HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "x".repeat(1 << 20)
    ));
    refused(&format!("GET / HTTP/1.1\r\n{}\r\n", "X: y\r\n".repeat(100)));
    // A body is not asked for, and nobody reads it.
    let request = format!(
        "POST /metrics HTTP/1.1\r\nHost: localhost\r\nContent-Length: {0}\r\n\r\n{1}",
        1 << 20,
        "x".repeat(1 << 20)
    );
    assert!(exchange(&page, request.as_bytes()).starts_with("HTTP/1.1 405 "));
}

#[test]
fn garbage_is_refused() {
    let page = serve(Arc::new(Content::default()));
    let garbage: [&[u8]; 5] = [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\0\0\0\0\xff\xff\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\nno header\r\n\r\n",
        b"{\"step\": 7}\n",
    ];
    for bytes in garbage {
        let answer = exchange(&page, bytes);
        assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    }
    // Half a request, and then nothing more to come.
    let mut stream = connect(&page);
    stream.write_all(b"GET /metrics HT").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    plain_request(&page);
}

#[test]
fn a_page_stops_at_once_with_all_its_connections() {
    let content = Arc::new(Content::default());
    let page = serve(Arc::clone(&content) as Arc<dyn PageContent>);
    let (mut idle, mut deaf) = (connect(&page), connect(&page));
    deaf.write_all(b"GET /status HTTP/1.0\r\n\r\n").unwrap();
    deaf.peek(&mut [0]).unwrap();
    let (address, began) = (page.local_addr(), Instant::now());
    drop(page);
    assert!(began.elapsed() < PROMPT / 2, "{:?}", began.elapsed());
    assert_eq!(Arc::strong_count(&content), 1, "its thread is gone");
    assert_eq!(idle.read(&mut [0]).unwrap(), 0);
    assert!(TcpStream::connect(address).is_err());
    // Whoever serves next gets the port.
    HttpPage::serve(address, content).unwrap();
}

#[test]
fn an_address_that_is_taken_is_named_with_advice() {
    let content = Arc::new(Content::default());
    let page = serve(Arc::clone(&content) as Arc<dyn PageContent>);
    let error = HttpPage::serve(page.local_addr(), content).unwrap_err();
    assert!(matches!(error, PageError::Listen { .. }));
    assert!(
        error.to_string().contains(&page.local_addr().to_string()),
        "{error}"
    );
    assert!(error.hint().unwrap().contains("another program"));
}

#[test]
#[ignore = "runs as a child of the test below"]
fn serves_with_few_descriptors() {
    let few = rustix::process::Rlimit {
        current: Some(16),
        maximum: Some(16),
    };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, few).unwrap();
    let page = serve(Arc::new(Content::default()));
    println!("\nport {}", page.local_addr().port());
    // Until the parent is done.
    let _ = std::io::stdin().read(&mut [0]);
}

#[test]
fn idle_clients_that_take_the_last_descriptors_hold_up_nobody() {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([
            "serves_with_few_descriptors",
            "--exact",
            "--ignored",
            "--nocapture",
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.as_mut().unwrap()).lines();
    let port = lines.find_map(|line| line.unwrap().strip_prefix("port ")?.parse().ok());
    let address = SocketAddr::from(([127, 0, 0, 1], port.unwrap()));
    let _idle: Vec<_> = (0..40)
        .map(|_| TcpStream::connect(address).unwrap())
        .collect();

    let (began, mut answer) = (Instant::now(), String::new());
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(LATE)).unwrap();
    stream.write_all(b"GET /healthz HTTP/1.0\r\n\r\n").unwrap();
    stream.read_to_string(&mut answer).unwrap();
    let took = began.elapsed();
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
    assert!(
        answer.ends_with("\r\n\r\nok\n") && took < PROMPT,
        "{took:?}: {answer}"
    );
}

/// Content that says when it is asked, and answers when it may.
#[derive(Debug)]
struct Stuck {
    asked: Mutex<Sender<()>>,
    may_answer: Mutex<Receiver<()>>,
}

impl PageContent for Stuck {
    fn health(&self) -> Health {
        self.asked.lock().unwrap().send(()).unwrap();
        let _ = self.may_answer.lock().unwrap().recv();
        Health::good()
    }

    fn status(&self) -> Value {
        Value::Null
    }

    fn metrics(&self, _: &str) -> MetricsText {
        panic!("on purpose")
    }
}

#[test]
fn content_that_is_stuck_or_panics_does_not_take_the_launcher_along() {
    let ((asked, is_asked), (release, may_answer)) = (channel(), channel());
    let content = Arc::new(Stuck {
        asked: Mutex::new(asked),
        may_answer: Mutex::new(may_answer),
    });
    let page = serve(content);
    assert!(ask(&page, "GET /metrics").0.starts_with("HTTP/1.1 500 "));
    let mut waiting = connect(&page);
    waiting.write_all(b"GET /healthz HTTP/1.0\r\n\r\n").unwrap();
    is_asked.recv().unwrap();
    let began = Instant::now();
    drop(page);
    assert!(began.elapsed() < 3 * PROMPT, "{:?}", began.elapsed());
    drop(release);
}
