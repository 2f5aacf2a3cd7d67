//! Where a server listens.

use std::io::ErrorKind;
use std::net::SocketAddr;

use tokio::net::TcpListener;

/// Listens at an address that a user has chosen.
///
/// # Errors
/// Why that cannot be, and what can.
pub(crate) async fn listen(host: &str, port: u16) -> Result<(TcpListener, SocketAddr), String> {
    let bound = async {
        let listener = TcpListener::bind((host, port)).await?;
        let address = listener.local_addr()?;
        Ok((listener, address))
    };
    bound.await.map_err(|error: std::io::Error| {
        let help = match error.kind() {
            ErrorKind::AddrInUse => "another program listens there; --port takes another port, --port 0 a free one",
            ErrorKind::AddrNotAvailable => "--host takes an address of this machine; 0.0.0.0 is all of them",
            ErrorKind::PermissionDenied => "ports below 1024 are the system's; --port takes another one",
            _ => "--host takes an address or a name of this machine, --port 0 a free port",
        };
        format!("cannot listen at {}: {error}; {help}", pd_net::ctrl::address(host, port))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_cannot_be_had_is_named_with_what_can() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().expect("a runtime");
        let wrong = |host: &str, port: u16| runtime.block_on(listen(host, port)).expect_err("it cannot be had");
        let held = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = held.local_addr().expect("bound").port();
        let error = wrong("127.0.0.1", port);
        assert!(error.contains(&format!("127.0.0.1:{port}")) && error.contains("--port 0 a free one"), "{error}");
        // Addresses for documentation: no machine has them.
        let error = wrong("192.0.2.1", 0);
        assert!(error.contains("192.0.2.1:0") && error.contains("--host"), "{error}");
        let error = wrong("2001:db8::1", 0);
        assert!(error.contains("[2001:db8::1]:0"), "{error}");
    }
}
