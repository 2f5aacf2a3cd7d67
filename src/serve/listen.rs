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
            ErrorKind::AddrInUse => {
                let who = holder(port).unwrap_or_else(|| "another program".to_owned());
                format!("{who} listens there; --port takes another port, --port 0 a free one")
            }
            ErrorKind::AddrNotAvailable => "--host takes an address of this machine; 0.0.0.0 is all of them".to_owned(),
            ErrorKind::PermissionDenied => "ports below 1024 are the system's; --port takes another one".to_owned(),
            _ => "--host takes an address or a name of this machine, --port 0 a free port".to_owned(),
        };
        format!("cannot listen at {}: {error}; {help}", pd_net::ctrl::address(host, port))
    })
}

/// The process that listens at a port, as far as the system lets us see.
fn holder(port: u16) -> Option<String> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(|table| std::fs::read_to_string(table).unwrap_or_default());
    let sockets: Vec<String> =
        tables.iter().flat_map(|table| table.lines()).filter_map(|line| socket(line, port)).collect();
    let is_process =
        |entry: &std::fs::DirEntry| entry.file_name().to_string_lossy().bytes().all(|byte| byte.is_ascii_digit());
    for process in std::fs::read_dir("/proc").ok()?.flatten().filter(is_process) {
        let files = std::fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten();
        let mut links = files.filter_map(|file| std::fs::read_link(file.path()).ok());
        if links.any(|link| sockets.iter().any(|socket| link.as_os_str() == socket.as_str())) {
            let name = std::fs::read_to_string(process.path().join("comm")).ok()?;
            return Some(format!("{} (process {})", name.trim(), process.file_name().display()));
        }
    }
    None
}

/// The socket of a line of `/proc/net/tcp`, as links to it are written, if it listens at this port.
fn socket(line: &str, port: u16) -> Option<String> {
    const LISTENS: &str = "0A";
    let mut fields = line.split_whitespace().skip(1);
    let (local, state) = (fields.next()?, fields.nth(1)?);
    let (_, hex) = local.rsplit_once(':')?;
    let is_it = state == LISTENS && u16::from_str_radix(hex, 16).is_ok_and(|it| it == port);
    is_it.then(|| fields.nth(5)).flatten().map(|inode| format!("socket:[{inode}]"))
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
        assert!(error.contains(&format!("(process {})", std::process::id())), "{error}");
        // Addresses for documentation: no machine has them.
        let error = wrong("192.0.2.1", 0);
        assert!(error.contains("192.0.2.1:0") && error.contains("--host"), "{error}");
        let error = wrong("2001:db8::1", 0);
        assert!(error.contains("[2001:db8::1]:0"), "{error}");
    }
}
