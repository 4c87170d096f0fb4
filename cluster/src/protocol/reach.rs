//! From where the launcher can be reached: this host alone, or every network that it is on.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};

use nix::ifaddrs::{InterfaceAddress, getifaddrs};
use nix::net::if_::InterfaceFlags;
use nix::sys::socket::{Backlog, listen};

/// Where the ranks are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// All on this host: nobody else can even knock.
    ThisHost,
    /// On other hosts, too.
    Network,
}

impl Reach {
    /// Listens on a free port. Also returns where to connect to, the likeliest address first and this host's own last.
    ///
    /// # Errors
    /// There is no free port, or the interfaces cannot be listed.
    pub fn listen(self) -> io::Result<(TcpListener, Vec<SocketAddr>)> {
        let (listener, mut hosts) = match self {
            Reach::ThisHost => (TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?, vec![]),
            Reach::Network => {
                // Takes connections of both kinds, except where the kernel knows no IPv6.
                let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0))
                    .or_else(|_| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)))?;
                let takes_v6 = listener.local_addr()?.is_ipv6();
                (listener, hosts().map(|found| found.into_iter().filter(|ip| ip.is_ipv4() || takes_v6).collect())?)
            }
        };
        // The standard library lets so few wait that a crowd of strangers would keep a rank waiting for a second.
        listen(&listener, Backlog::MAXCONN)?;
        hosts.push(Ipv4Addr::LOCALHOST.into());
        let port = listener.local_addr()?.port();
        Ok((listener, hosts.into_iter().map(|ip| SocketAddr::new(ip, port)).collect()))
    }
}

/// This host's addresses on all networks, IPv4 first.
fn hosts() -> io::Result<Vec<IpAddr>> {
    let mut found: Vec<IpAddr> = getifaddrs()?.filter_map(|interface| reachable(&interface)).collect();
    found.sort_by_key(IpAddr::is_ipv6);
    found.dedup();
    Ok(found)
}

/// The address of an interface, if another host may get there.
fn reachable(interface: &InterfaceAddress) -> Option<IpAddr> {
    let flags = interface.flags;
    if !flags.contains(InterfaceFlags::IFF_UP) || flags.contains(InterfaceFlags::IFF_LOOPBACK) {
        return None;
    }
    let address = interface.address.as_ref()?;
    let v4 = || address.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
    // A link-local address means something else on every host.
    let v6 = || address.as_sockaddr_in6().map(|a| a.ip()).filter(|ip| !ip.is_unicast_link_local()).map(IpAddr::V6);
    v4().or_else(v6)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpStream;

    #[test]
    fn this_host_is_reached_by_its_own_address_alone() {
        let (listener, addresses) = Reach::ThisHost.listen().unwrap();
        assert_eq!(addresses, [listener.local_addr().unwrap()]);
        assert!(addresses[0].ip().is_loopback());
    }

    #[test]
    fn a_network_is_reached_by_every_address_that_is_named() {
        let (listener, addresses) = Reach::Network.listen().unwrap();
        let local = listener.local_addr().unwrap();
        assert!(local.ip().is_unspecified());
        let (own, others) = addresses.split_last().unwrap();
        assert!(own.ip().is_loopback() && others.iter().all(|a| !a.ip().is_loopback()), "{addresses:?}");
        assert!(addresses.iter().all(|a| a.port() == local.port()));
        for address in addresses {
            TcpStream::connect(address).unwrap();
            listener.accept().unwrap();
        }
    }
}
