//! Under which addresses other nodes may find this one.

use std::{
    io,
    net::{IpAddr, SocketAddr},
};

/// Addresses of this machine with a port, those first that other machines are likeliest to reach; the
/// host's name before loopback.
pub(super) fn published(bound: SocketAddr, host_name: Option<&str>) -> io::Result<Vec<String>> {
    let port = bound.port();
    let mut found: Vec<IpAddr> = if bound.ip().is_unspecified() {
        let interfaces = if_addrs::get_if_addrs()?.into_iter();
        let usable =
            interfaces.filter(|interface| interface.is_loopback() || interface.is_oper_up());
        usable.map(|interface| interface.ip()).collect()
    } else {
        vec![bound.ip()]
    };
    // An address of a link means nothing without the link's name, which differs from node to node.
    found.retain(|address| !is_link_local(*address) && (address.is_ipv4() || bound.is_ipv6()));
    found.sort_by_key(|address| (address.is_loopback(), address.is_ipv6()));
    found.dedup();
    let text = |address: &IpAddr| SocketAddr::new(*address, port).to_string();
    let (near, far): (Vec<_>, Vec<_>) = found.into_iter().partition(IpAddr::is_loopback);
    let host = host_name.map(|name| format!("{name}:{port}"));
    Ok(far
        .iter()
        .map(text)
        .chain(host)
        .chain(near.iter().map(text))
        .collect())
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_comes_last_and_a_chosen_address_alone() {
        let all = published("[::]:7".parse().unwrap(), Some("node-a")).unwrap();
        let host = all.iter().position(|it| it == "node-a:7").unwrap();
        let loopback = all.iter().position(|it| it == "127.0.0.1:7").unwrap();
        assert!(host < loopback, "{all:?}");
        assert!(all.iter().all(|it| !it.starts_with("[fe80")), "{all:?}");
        let one = published("127.0.0.1:9".parse().unwrap(), None).unwrap();
        assert_eq!(one, ["127.0.0.1:9"]);
    }
}
