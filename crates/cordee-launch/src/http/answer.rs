//! What is answered to a request.

use std::{
    net::IpAddr,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use httparse::{Request, Status};

use super::PageContent;

/// Bytes of a request, from its first to the empty line.
const LENGTH: usize = 8 << 10;
/// Headers of a request.
const HEADERS: usize = 64;

const PATHS: &str = "\
/healthz  whether this node does what it should: 200, or 503 and why not
/metrics  figures for Prometheus
/status   how the run stands, as JSON
";

const TEXT: &str = "text/plain; charset=utf-8";

/// Who knows the answers.
pub(super) struct Desk {
    content: Arc<dyn PageContent>,
    is_local: bool,
}

/// An answer but for its bytes.
#[derive(Debug)]
struct Answer {
    status: &'static str,
    content_type: &'static str,
    body: String,
}

impl Answer {
    fn good(content_type: &'static str, body: String) -> Self {
        Self {
            status: "200 OK",
            content_type,
            body,
        }
    }

    fn other(status: &'static str, body: impl Into<String>) -> Self {
        Self {
            status,
            content_type: TEXT,
            body: body.into(),
        }
    }

    fn bytes(self, has_body: bool) -> Vec<u8> {
        let Self {
            status,
            content_type,
            body,
        } = self;
        // RFC 9110, section 15.5.6: who refuses a method says which there are.
        let allow = if status.starts_with("405") {
            "Allow: GET, HEAD\r\n"
        } else {
            ""
        };
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {}\r\n{allow}Connection: close\r\n\
             Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n\r\n",
            body.len()
        );
        let body = if has_body { body } else { String::new() };
        [head, body].concat().into_bytes()
    }
}

impl Desk {
    /// For a page that is served on a loopback address, or not.
    pub(super) fn new(content: Arc<dyn PageContent>, is_local: bool) -> Self {
        Self { content, is_local }
    }

    /// The answer to what a client sent so far; `None` where more is to come.
    pub(super) fn answer(&self, sent: &[u8]) -> Option<Vec<u8>> {
        let mut headers = [httparse::EMPTY_HEADER; HEADERS];
        let mut request = Request::new(&mut headers);
        let too_long = || {
            let text = format!("a request may have {LENGTH} bytes and {HEADERS} headers\n");
            Answer::other("431 Request Header Fields Too Large", text)
        };
        let answer = match request.parse(sent) {
            Ok(Status::Partial) if sent.len() < LENGTH => return None,
            Ok(Status::Complete(length)) if length <= LENGTH => self.answer_to(&request),
            Ok(_) | Err(httparse::Error::TooManyHeaders) => too_long(),
            Err(_) => Answer::other("400 Bad Request", "this is no request of HTTP/1\n"),
        };
        Some(answer.bytes(request.method != Some("HEAD")))
    }

    fn answer_to(&self, request: &Request<'_, '_>) -> Answer {
        let (authority, path) = parts(request.path.unwrap_or_default());
        let mut hosts = values(request, "Host");
        let host = hosts.next();
        // RFC 9112, section 3.2.
        if hosts.next().is_some() || (host.is_none() && request.version == Some(1)) {
            return Answer::other("400 Bad Request", "a request names one Host\n");
        }
        let mut names = authority.into_iter().chain(host);
        if self.is_local && !names.all(is_no_name_of_others) {
            let text = "this page is for this machine alone: ask for localhost or 127.0.0.1\n";
            return Answer::other("421 Misdirected Request", text);
        }
        if !matches!(request.method, Some("GET" | "HEAD")) {
            return Answer::other("405 Method Not Allowed", "this page can only be read\n");
        }
        let accept: Vec<_> = values(request, "Accept").collect();
        // Whoever fills the page is no reason for it to end.
        let content = AssertUnwindSafe(|| self.content_of(path, &accept.join(",")));
        catch_unwind(content).unwrap_or_else(|_| {
            let text = "the page could not be made: see what the launcher printed\n";
            Answer::other("500 Internal Server Error", text)
        })
    }

    fn content_of(&self, path: &str, accept: &str) -> Answer {
        match path {
            "/healthz" => {
                let health = self.content.health();
                let line = health.text.lines().collect::<Vec<_>>().join(" ");
                if health.ok {
                    Answer::good(TEXT, "ok\n".to_owned())
                } else {
                    Answer::other("503 Service Unavailable", format!("{line}\n"))
                }
            }
            "/metrics" => {
                let metrics = self.content.metrics(accept);
                Answer::good(metrics.content_type, metrics.text)
            }
            "/status" => Answer::good("application/json", format!("{}\n", self.content.status())),
            _ => Answer::other("404 Not Found", PATHS),
        }
    }
}

impl std::fmt::Debug for Desk {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut desk = formatter.debug_struct("Desk");
        desk.field("is_local", &self.is_local)
            .finish_non_exhaustive()
    }
}

/// The values of a header. One that is not text is as good as an empty one.
fn values<'a>(request: &'a Request<'_, '_>, name: &'a str) -> impl Iterator<Item = &'a str> {
    let headers = request.headers.iter();
    headers
        .filter(move |header| header.name.eq_ignore_ascii_case(name))
        .map(|header| str::from_utf8(header.value).unwrap_or_default().trim())
}

/// The authority of a target, where it has one, and its path without the query (RFC 9112, section 3.2.2:
/// every server takes the absolute form).
fn parts(target: &str) -> (Option<&str>, &str) {
    let (authority, path) = match target.split_once("://") {
        Some((scheme, rest)) if !scheme.starts_with('/') => {
            let end = rest.find(['/', '?']).unwrap_or(rest.len());
            (Some(&rest[..end]), &rest[end..])
        }
        _ => (None, target),
    };
    let end = path.find('?').unwrap_or(path.len());
    (authority, &path[..end])
}

/// Whether an authority is this machine's own name or an address. Nobody else can make a browser ask
/// under these, while a name of their own may lead anywhere.
fn is_no_name_of_others(authority: &str) -> bool {
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => rest.split_once(']').unwrap_or((rest, "?")),
        None => authority.split_at(authority.find(':').unwrap_or(authority.len())),
    };
    let is_port = |port: &str| port.bytes().all(|it| it.is_ascii_digit());
    (port.is_empty() || port.strip_prefix(':').is_some_and(is_port))
        && (host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::http::{Health, MetricsText};

    struct Content;

    impl PageContent for Content {
        fn health(&self) -> Health {
            Health::bad("rank 3 hangs\nsince 14:02")
        }

        fn status(&self) -> serde_json::Value {
            panic!("on purpose")
        }

        fn metrics(&self, accept: &str) -> MetricsText {
            MetricsText {
                content_type: "text/x-test",
                text: format!("<{accept}>"),
            }
        }
    }

    /// The status of an answer, and its body.
    fn ask(is_local: bool, request: &str) -> (u16, String) {
        let answer = Desk::new(Arc::new(Content), is_local).answer(request.as_bytes());
        let answer = String::from_utf8(answer.expect("the request is whole")).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let length = format!("Content-Length: {}\r\n", body.len());
        assert!(
            request.starts_with("HEAD") || head.contains(&length),
            "{head}"
        );
        (head[9..12].parse().unwrap(), body.to_owned())
    }

    fn status(is_local: bool, head: &str) -> u16 {
        ask(is_local, &format!("{head}\r\n\r\n")).0
    }

    #[test]
    fn on_a_loopback_address_other_names_are_refused() {
        let hosts = [
            "localhost",
            "LOCALHOST:9400",
            "127.0.0.1",
            "127.0.0.1:80",
            "[::1]",
            "[::1]:9400",
            "10.0.0.4:9400",
        ];
        for host in hosts {
            let head = format!("GET /metrics HTTP/1.1\r\nHost: {host}");
            assert_eq!(status(true, &head), 200, "{host}");
        }
        let hosts = [
            "attacker.example",
            "attacker.example:9400",
            "localhost.attacker.example",
            "127.0.0.1.attacker.example",
            "localhost:1@attacker.example",
            "[::1].attacker.example",
            "[::1",
            "localhost:x",
            "",
            "\u{e9}",
        ];
        for host in hosts {
            let head = format!("GET /metrics HTTP/1.1\r\nHost: {host}");
            assert_eq!(status(true, &head), 421, "{host}");
            assert_eq!(status(false, &head), 200, "{host}");
        }
        let absolute = "GET http://attacker.example/metrics HTTP/1.1\r\nHost: localhost";
        assert_eq!(status(true, absolute), 421);
    }

    #[test]
    fn a_host_is_named_once() {
        assert_eq!(status(true, "GET /metrics HTTP/1.1"), 400);
        assert_eq!(
            status(true, "GET /metrics HTTP/1.1\r\nHost: localhost\r\nHost: a"),
            400
        );
        assert_eq!(status(true, "GET /metrics HTTP/1.0"), 200);
    }

    #[test]
    fn targets_are_read_in_both_forms() {
        for target in [
            "/metrics",
            "/metrics?a=b://c",
            "http://localhost:80/metrics",
            "HTTP://localhost/metrics?x",
        ] {
            let head = format!("GET {target} HTTP/1.1\r\nHost: localhost");
            assert_eq!(status(true, &head), 200, "{target}");
        }
        for target in [
            "/",
            "*",
            "/metrics/",
            "//metrics",
            "/Metrics",
            "http://localhost",
            "/status.json",
        ] {
            let head = format!("GET {target} HTTP/1.1\r\nHost: localhost");
            assert_eq!(status(true, &head), 404, "{target}");
        }
    }

    #[test]
    fn content_hears_what_is_accepted_and_its_panics_end_nothing() {
        let host = "HTTP/1.1\r\nHost: localhost\r\n";
        let accept = format!("GET /metrics {host}Accept: a/b\r\naccept:  c/d;q=0.5 \r\n\r\n");
        assert_eq!(ask(true, &accept), (200, "<a/b,c/d;q=0.5>".to_owned()));
        let (code, line) = ask(true, &format!("GET /healthz {host}\r\n"));
        assert_eq!((code, line.as_str()), (503, "rank 3 hangs since 14:02\n"));
        assert_eq!(ask(true, &format!("GET /status {host}\r\n")).0, 500);
    }

    #[test]
    fn a_request_may_come_in_any_pieces() {
        let desk = Desk::new(Arc::new(Content), true);
        let whole = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n\r\n";
        for length in 0..whole.len() {
            assert!(desk.answer(&whole[..length]).is_none(), "{length}");
        }
        assert!(desk.answer(whole).unwrap().starts_with(b"HTTP/1.1 200"));
    }
    proptest! {
        #[test]
        fn whatever_comes_is_waited_for_or_answered(
            start in prop::sample::select(vec!["", "GET /metrics HTTP/1.1\r\nHost: ", "HEAD http://", "\r\n\r\n"]),
            bytes in prop::collection::vec(any::<u8>(), 0..2 * LENGTH),
        ) {
            let sent = [start.as_bytes(), &bytes].concat();
            let answer = Desk::new(Arc::new(Content), true).answer(&sent);
            prop_assert!(answer.is_some() || sent.len() < LENGTH);
            prop_assert!(answer.is_none_or(|it| it.starts_with(b"HTTP/1.1 ")));
        }
    }
}
