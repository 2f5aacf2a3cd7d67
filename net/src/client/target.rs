//! Where a server is: `http://host:port`, perhaps with a path in front of all others.

use std::fmt;

use hyper::Uri;
use thiserror::Error;

/// A checked base address.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Target {
    /// `host:port`; the port is always written.
    authority: String,
    host: String,
    /// Empty, or begins with `/` and does not end with one.
    base: String,
}

/// Why an address is none.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("{text:?} is not an address of a server: {why}")]
pub(crate) struct TargetError {
    /// What was given.
    pub(crate) text: String,
    /// What is wrong, and what to write instead.
    pub(crate) why: String,
}

impl Target {
    /// Parses `http://host[:port][/base]`.
    pub(crate) fn parse(text: &str) -> Result<Self, TargetError> {
        let fail = |why: String| TargetError { text: text.to_owned(), why };
        let trimmed = text.trim();
        if trimmed.starts_with("https://") {
            return Err(fail("https is not spoken here; use http:// inside the cluster, or a TLS proxy".into()));
        }
        if trimmed.starts_with("grpc://") {
            return Err(fail("gRPC is not spoken here; start the worker with its HTTP server".into()));
        }
        if !trimmed.starts_with("http://") {
            return Err(fail("it must start with http://, as in http://10.0.0.1:30000".into()));
        }
        let uri: Uri = trimmed.parse().map_err(|error| fail(format!("{error}")))?;
        if uri.query().is_some() {
            return Err(fail("a query (?...) has no meaning here".into()));
        }
        let authority = uri.authority().ok_or_else(|| fail("the host is missing".into()))?;
        if authority.as_str().contains('@') {
            return Err(fail("a user or rank before @ is not supported".into()));
        }
        let host = authority.host();
        if host.is_empty() {
            return Err(fail("the host is missing".into()));
        }
        // What follows the host is a colon and a number, or nothing.
        let rest = &authority.as_str()[host.len()..];
        let port = match rest.strip_prefix(':') {
            None => 80,
            Some(digits) => match digits.parse::<u16>() {
                Ok(port) if port > 0 => port,
                Ok(_) | Err(_) => return Err(fail(format!("port {digits:?} is not a number from 1 to 65535"))),
            },
        };
        let base = uri.path().trim_end_matches('/').to_owned();
        Ok(Self { authority: format!("{host}:{port}"), host: host.to_owned(), base })
    }

    /// The host alone, in brackets if it is an IPv6 address.
    pub(crate) fn host(&self) -> &str {
        &self.host
    }

    /// The address of `path_and_query` there. `None` if that makes no address.
    pub(crate) fn uri(&self, path_and_query: &str) -> Option<Uri> {
        format!("{self}{path_and_query}").parse().ok()
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}{}", self.authority, self.base)
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_normalised() {
        let shown = |text| Target::parse(text).expect(text).to_string();
        assert_eq!(shown("http://a:30000"), "http://a:30000");
        assert_eq!(shown(" http://a:30000/ "), "http://a:30000");
        assert_eq!(shown("http://a/base/"), "http://a:80/base");
        assert_eq!(shown("http://[::1]:7"), "http://[::1]:7");
        let target = Target::parse("http://a:1/base").expect("valid");
        assert_eq!(target.uri("/health?x=1").expect("valid").to_string(), "http://a:1/base/health?x=1");
        assert_eq!(Target::parse("http://[::1]:7").expect("valid").host(), "[::1]");
    }

    #[test]
    fn what_is_no_address_is_refused_with_a_reason() {
        for (text, why) in [
            ("foo", "http://"),
            ("", "http://"),
            ("https://a:1", "https"),
            ("grpc://a:1", "gRPC"),
            ("http://", ""),
            ("http://a:99999", "port"),
            ("http://a:0", "port"),
            ("http://a:", "port"),
            ("http://a:1@0", ""),
            ("http://a b:1", ""),
            ("http://a:1/?x", "query"),
        ] {
            let error = Target::parse(text).expect_err(text).to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
