//! What the kernel tells a process about itself.

/// The first line of a file.
pub fn first_line(path: &str) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    text.lines().next().map(|line| line.trim().to_owned())
}

/// One field of `/proc/self/status`.
pub fn status(field: &str) -> Option<String> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find(|line| line.split(':').next() == Some(field))?;
    Some(line[field.len() + 1..].split_whitespace().collect::<Vec<_>>().join(" "))
}

/// Where a stack of a cluster finds itself, which nobody outside knows as well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Around {
    /// Its own address.
    pub address: String,
    /// The address and port at which it is told to find the API server.
    pub api_server: String,
}

impl Around {
    pub(crate) fn look() -> Self {
        let socket = std::net::UdpSocket::bind("0.0.0.0:0");
        // Sends nothing: only a route is looked up.
        let routed = socket.and_then(|socket| {
            socket.connect("192.0.2.1:9")?;
            socket.local_addr()
        });
        // Every kubelet tells it to every container, whatever else it is told.
        let told = |name: &str| std::env::var(format!("KUBERNETES_SERVICE_{name}"));
        let api_server = match (told("HOST"), told("PORT")) {
            (Ok(host), Ok(port)) if host.contains(':') => format!("[{host}]:{port}"),
            (Ok(host), Ok(port)) => format!("{host}:{port}"),
            _ => String::new(),
        };
        let address = routed.map(|address| address.ip().to_string()).unwrap_or_default();
        Self { address, api_server }
    }

    pub(crate) fn written(&self) -> String {
        format!("{} {}", self.address, self.api_server)
    }

    /// From what a stack has printed; none unless it knows both.
    pub fn read(output: &str) -> Option<Self> {
        let (address, api_server) = output.trim_end().lines().last()?.split_once(' ')?;
        let known = !address.is_empty() && !api_server.is_empty();
        known.then(|| Self { address: address.to_owned(), api_server: api_server.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_around_is_read_back() {
        let around =
            Around { address: "10.244.1.2".to_owned(), api_server: "10.96.0.1:443".to_owned() };
        assert_eq!(Around::read(&format!("{}\n", around.written())), Some(around));
        assert_eq!(Around::read("10.244.1.2 \n"), None);
        assert_eq!(Around::read(""), None);
    }
}
