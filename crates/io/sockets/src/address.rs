//! Where a neighbour listens.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// A local socket, or a host and port that need no DNS.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Address {
    Unix(PathBuf),
    Tcp(std::net::SocketAddr),
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum AddressError {
    #[error("{0:?} is no absolute path of a socket")]
    Relative(String),
    #[error("{0:?} is no address; write unix:///path/to.sock")]
    Scheme(String),
    #[error("{0:?} is no IP address with a port")]
    HostPort(String),
}

impl FromStr for Address {
    type Err = AddressError;

    /// `unix:///run/x.sock`, `unix:/run/x.sock`, `/run/x.sock`, or `tcp://127.0.0.1:3735`.
    fn from_str(text: &str) -> Result<Self, AddressError> {
        if let Some(host_port) = text.strip_prefix("tcp://") {
            let parsed = host_port.parse();
            return parsed
                .map(Self::Tcp)
                .map_err(|_| AddressError::HostPort(text.to_owned()));
        }
        let path = match text.split_once(':') {
            Some(("unix", rest)) => rest.strip_prefix("//").unwrap_or(rest),
            None => text,
            Some(_) if text.starts_with('/') => text,
            Some(_) => return Err(AddressError::Scheme(text.to_owned())),
        };
        if !path.starts_with('/') {
            return Err(AddressError::Relative(text.to_owned()));
        }
        Ok(Self::Unix(path.into()))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Tcp(address) => write!(f, "tcp://{address}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let table = [
            (
                "unix:///run/containerd/containerd.sock",
                Ok("unix:///run/containerd/containerd.sock"),
            ),
            ("unix:/run/x.sock", Ok("unix:///run/x.sock")),
            ("/run/a:b.sock", Ok("unix:///run/a:b.sock")),
            ("tcp://127.0.0.1:3735", Ok("tcp://127.0.0.1:3735")),
            ("tcp://[::1]:9", Ok("tcp://[::1]:9")),
            (
                "tcp://localhost:1",
                Err(AddressError::HostPort("tcp://localhost:1".into())),
            ),
            (
                "npipe:////./pipe/x",
                Err(AddressError::Scheme("npipe:////./pipe/x".into())),
            ),
            ("run/x.sock", Err(AddressError::Relative("run/x.sock".into()))),
            (
                "unix://run/x.sock",
                Err(AddressError::Relative("unix://run/x.sock".into())),
            ),
            ("", Err(AddressError::Relative(String::new()))),
        ];
        for (text, wanted) in table {
            let parsed = text.parse::<Address>().map(|address| address.to_string());
            assert_eq!(parsed, wanted.map(str::to_owned), "{text}");
        }
    }
}
