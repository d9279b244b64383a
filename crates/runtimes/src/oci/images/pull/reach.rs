//! Where a pull may lead. Whoever makes a stack may name a registry, and a registry may name token
//! servers and other places for its blobs: this server must not become their way into the network
//! that it stands in.
//!
//! An address that is not public is asked only for a registry that the configuration names, in
//! whatever setting. The one exception is a registry that is named by a loopback address itself:
//! anybody may name it, and it leads to no other such address. What a caller learns of it is settled
//! in `client`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use reqwest::Url;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use super::super::config::ImageConfig;

/// Something that must not be asked. The text is for the operator.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Forbidden {
    /// Its address is not public.
    #[error("{0} is not on a public network")]
    Inner(String),
    /// It would be asked in clear.
    #[error("{0} is not asked by TLS")]
    Plain(String),
}

/// Where one registry or mirror may lead.
#[derive(Debug)]
pub(super) struct Reach {
    /// The registry itself, as `host[:port]`.
    own: String,
    /// Whether it is asked in clear.
    plain: bool,
    /// Whether the configuration names it.
    configured: bool,
    /// `host` or `host:port` of those that may be asked in clear.
    insecure: Vec<String>,
    /// Names of proxies: those are the operator's, wherever they are.
    proxies: Vec<String>,
}

impl Reach {
    /// `configured` has been found out by [`is_configured`] or by credentials for it.
    pub(super) fn new(host: &str, plain: bool, configured: bool, config: &ImageConfig) -> Self {
        Self {
            own: host.to_ascii_lowercase(),
            plain,
            configured,
            insecure: config.insecure_registries.clone(),
            proxies: proxies(),
        }
    }

    /// Whether a request may be sent there, as far as that can be told without its address.
    pub(super) fn check(&self, url: &Url) -> Result<(), Forbidden> {
        let place = || url.host_str().unwrap_or_default().to_owned();
        match url.scheme() {
            "https" => {}
            "http" if self.plain || self.is_insecure(url) => {}
            _ => return Err(Forbidden::Plain(place())),
        }
        let host = place();
        // One loopback registry is no reason to ask what else listens there.
        if !self.configured && is_loopback(&host) && !self.is_own(url) {
            return Err(Forbidden::Inner(host));
        }
        // The connector does not resolve what is an address already.
        let literal: Option<IpAddr> = host.trim_matches(['[', ']']).parse().ok();
        match literal {
            Some(address) if !self.may_reach(&host, address) => Err(Forbidden::Inner(host)),
            _ => Ok(()),
        }
    }

    fn is_own(&self, url: &Url) -> bool {
        is_at(url, &self.own)
    }

    fn is_insecure(&self, url: &Url) -> bool {
        self.insecure.iter().any(|host| is_at(url, host))
    }

    fn may_reach(&self, name: &str, address: IpAddr) -> bool {
        let its_own = || name == name_of(&self.own) && is_loopback(name) && address.is_loopback();
        self.configured || is_public(address) || its_own()
    }

    /// Of the addresses of a name, those that may be asked.
    fn reachable(
        &self,
        name: &str,
        addresses: impl Iterator<Item = SocketAddr>,
    ) -> Result<Vec<SocketAddr>, Forbidden> {
        let name = name.to_ascii_lowercase();
        let proxy = self.proxies.contains(&name);
        let good: Vec<_> = addresses.filter(|at| proxy || self.may_reach(&name, at.ip())).collect();
        if good.is_empty() { Err(Forbidden::Inner(name)) } else { Ok(good) }
    }
}

/// Looks names up as the system does, and keeps to what may be reached: what is checked is what is
/// connected to.
pub(super) struct Resolver(pub(super) Arc<Reach>);

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let reach = Arc::clone(&self.0);
        Box::pin(async move {
            let addresses = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let good = reach.reachable(name.as_str(), addresses)?;
            Ok(Box::new(good.into_iter()) as Addrs)
        })
    }
}

/// Why a request was not sent, where it was for its address.
pub(super) fn forbidden<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a Forbidden> {
    std::iter::successors(Some(error), |error| error.source())
        .find_map(|error| error.downcast_ref::<Forbidden>())
}

/// Whether the configuration names a registry or mirror.
pub(super) fn is_configured(host: &str, config: &ImageConfig) -> bool {
    let in_list = |list: &Vec<String>| list.iter().any(|name| name == host);
    in_list(&config.insecure_registries)
        || in_list(&config.allowed_registries)
        || in_list(&config.internal_registries)
        || config.mirrors.values().any(in_list)
}

/// Whether an address is of `host[:port]`, which has the scheme's port where it names none.
fn is_at(url: &Url, host: &str) -> bool {
    let name = name_of(host);
    let port = host[name.len()..].strip_prefix(':').map(|port| port.parse::<u16>().ok());
    let same_port = match port {
        None => url.port().is_none(),
        Some(port) => url.port_or_known_default() == port,
    };
    url.host_str() == Some(name) && same_port
}

/// `host[:port]` without the port.
fn name_of(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    }
}

/// Whether `host[:port]` can only be this machine.
pub(super) fn is_loopback(host: &str) -> bool {
    let name = name_of(host);
    name == "localhost" || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// Whether an address can be somebody else's on the internet: neither this machine's own, nor of
/// a private network, nor of a single link, where clouds keep their machines' secrets.
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => is_public_v4(v4),
        IpAddr::V6(v6) => embedded(v6).map_or_else(|| is_public_v6(v6), is_public_v4),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let shared = |[a, b, ..]: [u8; 4]| a == 100 && (64..128).contains(&b);
    let benchmarks = |[a, b, ..]: [u8; 4]| a == 198 && (18..20).contains(&b);
    let protocols = |[a, b, c, _]: [u8; 4]| [a, b, c] == [192, 0, 0];
    let octets = address.octets();
    !(octets[0] == 0
        || octets[0] >= 224
        || address.is_private()
        || address.is_loopback()
        || address.is_link_local()
        || address.is_documentation()
        || shared(octets)
        || benchmarks(octets)
        || protocols(octets))
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let first = address.segments()[0];
    // What is handed out at all, less the documentation's.
    first & 0xe000 == 0x2000 && address.segments()[..2] != [0x2001, 0xdb8]
}

/// The IPv4 address that a gateway or the kernel would make of it.
fn embedded(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let [a, b, c, d, e, f, g, h] = address.segments();
    let v4 = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        Ipv4Addr::new(a, b, c, d)
    };
    match [a, b, c, d, e, f] {
        [0, 0, 0, 0, 0, 0xffff] | [0x64, 0xff9b, 0, 0, 0, 0] => Some(v4(g, h)),
        [0x2002, ..] => Some(v4(b, c)),
        _ => None,
    }
}

/// The names of the proxies that requests go through. The HTTP client reads the same variables by
/// itself, and asks the resolver for a proxy's name instead of the registry's.
fn proxies() -> Vec<String> {
    let variables =
        ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"];
    let host = |text: String| {
        let url = Url::parse(&text).or_else(|_| Url::parse(&format!("http://{text}"))).ok()?;
        Some(url.host_str()?.to_ascii_lowercase())
    };
    variables.iter().filter_map(|name| std::env::var(name).ok()).filter_map(host).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        Url::parse(text).unwrap()
    }

    #[test]
    fn loopback_is_told_by_name_or_address() {
        for host in ["localhost", "localhost:5000", "127.0.0.1", "127.9.9.9:1"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in ["docker.io", "localhost.example", "128.0.0.1:5000", "127.0.0.1.example:80"] {
            assert!(!is_loopback(host), "{host}");
        }
    }

    #[test]
    fn inner_addresses_are_known_in_every_form() {
        for inner in [
            "127.0.0.1",
            "0.0.0.0",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.0.1",
            "169.254.169.254",
            "100.64.0.1",
            "198.18.0.1",
            "192.0.0.8",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "fe80::1",
            "fd00::1",
            "fec0::1",
            "ff02::1",
            "::ffff:10.0.0.1",
            "::ffff:127.0.0.1",
            "64:ff9b::a9fe:a9fe",
            "2002:a00:1::",
            "2001:db8::1",
            "::7f00:1",
        ] {
            assert!(!is_public(inner.parse().unwrap()), "{inner}");
        }
        for public in
            ["1.1.1.1", "100.128.0.1", "172.32.0.1", "2606:4700::1111", "64:ff9b::101:101"]
        {
            assert!(is_public(public.parse().unwrap()), "{public}");
        }
    }

    #[test]
    fn a_registry_that_nobody_configured_leads_to_public_places_by_tls_only() {
        let config = ImageConfig {
            insecure_registries: vec!["plain.example:80".to_owned()],
            ..ImageConfig::default()
        };
        let reach = Reach::new("evil.example", false, false, &config);
        assert_eq!(reach.check(&url("https://cdn.example/x")), Ok(()));
        assert_eq!(reach.check(&url("http://plain.example/x")), Ok(()));
        for (to, expected) in [
            ("http://cdn.example/x", Forbidden::Plain("cdn.example".to_owned())),
            ("ftp://cdn.example/x", Forbidden::Plain("cdn.example".to_owned())),
            ("https://169.254.169.254/x", Forbidden::Inner("169.254.169.254".to_owned())),
            ("https://2130706433/x", Forbidden::Inner("127.0.0.1".to_owned())),
            ("https://0x7f.1/x", Forbidden::Inner("127.0.0.1".to_owned())),
            ("https://[::1]:5000/x", Forbidden::Inner("[::1]".to_owned())),
        ] {
            assert_eq!(reach.check(&url(to)), Err(expected), "{to}");
        }
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        let mixed = [at("127.0.0.1:0"), at("1.1.1.1:0"), at("[fd00::1]:0")];
        assert_eq!(reach.reachable("evil.example", mixed.into_iter()), Ok(vec![at("1.1.1.1:0")]));
        let inner = [at("127.0.0.1:0")];
        let refused = Err(Forbidden::Inner("localhost".to_owned()));
        assert_eq!(reach.reachable("localhost", inner.into_iter()), refused);
    }

    #[test]
    fn a_loopback_registry_leads_to_itself_and_a_configured_one_anywhere() {
        let config = ImageConfig::default();
        let loopback = Reach::new("127.0.0.1:5000", true, false, &config);
        assert_eq!(loopback.check(&url("http://127.0.0.1:5000/v2/")), Ok(()));
        let inner = |host: &str| Err(Forbidden::Inner(host.to_owned()));
        assert_eq!(loopback.check(&url("http://127.0.0.1:5001/")), inner("127.0.0.1"));
        assert_eq!(loopback.check(&url("http://localhost:5000/")), inner("localhost"));
        for (own, same) in
            [("localhost:80", "http://localhost/"), ("localhost", "http://localhost:80/")]
        {
            assert_eq!(Reach::new(own, true, false, &config).check(&url(same)), Ok(()), "{own}");
        }
        for other in ["127.0.0.2", "10.0.0.1", "169.254.169.254"] {
            assert_eq!(loopback.check(&url(&format!("http://{other}/"))), inner(other));
        }
        let configured = Reach::new("registry.example", false, true, &config);
        assert_eq!(configured.check(&url("https://10.0.0.1/")), Ok(()));
        let plain = Err(Forbidden::Plain("10.0.0.1".to_owned()));
        assert_eq!(configured.check(&url("http://10.0.0.1/")), plain);
    }

    #[tokio::test]
    async fn names_are_checked_by_what_they_resolve_to() {
        let reach = |host, configured| {
            Resolver(Arc::new(Reach::new(host, false, configured, &ImageConfig::default())))
        };
        let resolve = async |resolver: Resolver| {
            let resolved = resolver.resolve("localhost".parse().unwrap()).await;
            resolved.map(|addresses| addresses.count() > 0)
        };
        assert!(resolve(reach("localhost:5000", false)).await.unwrap());
        assert!(resolve(reach("registry.example", true)).await.unwrap());
        let error = resolve(reach("registry.example", false)).await.unwrap_err();
        assert!(forbidden(&*error).is_some(), "{error}");
    }

    #[test]
    fn every_setting_that_names_a_registry_configures_it() {
        let named = || vec!["a:1".to_owned()];
        let settings = [
            ImageConfig { insecure_registries: named(), ..ImageConfig::default() },
            ImageConfig { allowed_registries: named(), ..ImageConfig::default() },
            ImageConfig { internal_registries: named(), ..ImageConfig::default() },
            ImageConfig { mirrors: [("b".to_owned(), named())].into(), ..ImageConfig::default() },
        ];
        for config in settings {
            assert!(is_configured("a:1", &config) && !is_configured("a", &config), "{config:?}");
        }
    }
}
