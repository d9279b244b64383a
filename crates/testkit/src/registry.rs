//! A real registry on loopback: Debian's `docker-registry`, with storage of its own.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use oci_client::client::{
    Certificate, CertificateEncoding, ClientConfig, ClientProtocol, Config, ImageLayer,
};
use oci_client::manifest::{OciImageManifest, OciManifest};
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference};
use rustix::process::{Pid, Signal};
use stackd_runtimes::oci::images::{Digest, install_tls_provider};

use crate::{certificates, sample};

/// Who may use a registry that wants a password.
pub const USER: &str = "puller";
/// The password.
pub const PASSWORD: &str = "secret";
/// bcrypt of the password, as `htpasswd -B` writes it.
const HTPASSWD: &str = "puller:$2b$05$x50IIjjFTjxUDAwGfU4.JuYl/1kE29TgFB//ghTyH969xJr0mlD.C\n";

/// A registry, gone when this is.
pub struct Registry {
    process: Child,
    /// Address and port.
    pub host: String,
    /// What it has on disk; free for a test's own files.
    pub dir: tempfile::TempDir,
    auth: RegistryAuth,
    /// The authority of its certificate, where it has one.
    pub authority: Option<PathBuf>,
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Registry {
    /// Starts one that wants a password or not, with TLS or without.
    pub fn start(password: bool, tls: bool) -> Self {
        install_tls_provider();
        let dir = tempfile::tempdir().expect("a working registry");
        let storage = dir.path().join("storage");
        let mut config = format!(
            "version: 0.1\nlog: {{level: info}}\nstorage:\n  filesystem: {{rootdirectory: {}}}\nhttp:\n  \
             addr: 127.0.0.1:0\n",
            storage.display()
        );
        if tls {
            certificates::make(dir.path());
            let at = dir.path().display();
            config += &format!("  tls: {{certificate: {at}/server.pem, key: {at}/server.key}}\n");
        }
        if password {
            let path = dir.path().join("htpasswd");
            fs::write(&path, HTPASSWD).expect("a working registry");
            config += &format!("auth:\n  htpasswd: {{realm: test, path: {}}}\n", path.display());
        }
        let path = dir.path().join("config.yml");
        fs::write(&path, config).expect("a working registry");
        let mut process = Command::new("docker-registry")
            .arg("serve")
            .arg(&path)
            .env("OTEL_TRACES_EXPORTER", "none")
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| certificates::missing("docker-registry", &e));
        // It says where it listens; the rest of its log is read so that it never blocks.
        let mut lines = BufReader::new(process.stderr.take().expect("a working registry")).lines();
        let host = loop {
            let line = lines.next().expect("the registry ended").expect("a working registry");
            if let Some((_, after)) = line.split_once("listening on 127.0.0.1:") {
                let port: String = after.chars().take_while(char::is_ascii_digit).collect();
                break format!("127.0.0.1:{port}");
            }
        };
        std::thread::spawn(move || lines.for_each(drop));
        let auth = if password {
            RegistryAuth::Basic(USER.to_owned(), PASSWORD.to_owned())
        } else {
            RegistryAuth::Anonymous
        };
        let authority = tls.then(|| dir.path().join("ca.pem"));
        Self { process, host, dir, auth, authority }
    }

    /// The full name of an image here.
    pub fn name(&self, rest: &str) -> String {
        format!("{}/{rest}", self.host)
    }

    fn client(&self) -> Client {
        let certificates = self.authority.iter().map(|path| Certificate {
            encoding: CertificateEncoding::Pem,
            data: fs::read(path).expect("a working registry"),
        });
        Client::new(ClientConfig {
            protocol: if self.authority.is_some() {
                ClientProtocol::Https
            } else {
                ClientProtocol::Http
            },
            extra_root_certificates: certificates.collect(),
            ..ClientConfig::default()
        })
    }

    /// A Docker `config.json` that `docker login` with this password would have written.
    pub fn docker_config(&self, password: &str) -> String {
        let auth = STANDARD.encode(format!("{USER}:{password}"));
        serde_json::json!({"auths": {&self.host: {"auth": auth}}}).to_string()
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.process);
        rustix::process::kill_process(pid, signal).expect("the signal is sent");
    }

    /// From now on it takes connections and answers nothing.
    pub fn pause(&self) {
        self.signal(Signal::STOP);
    }

    /// It answers again, also what was asked meanwhile.
    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    /// Pushes the sample image.
    pub async fn push_sample(&self, name: &str) -> Digest {
        let layer = sample::rootfs();
        let kind = "application/vnd.oci.image.layer.v1.tar";
        self.push(name, sample::config(&layer), vec![(layer, kind)]).await
    }

    /// Pushes the sample image with a further layer of this many bytes.
    pub async fn push_large_sample(&self, name: &str, bytes: usize) -> Digest {
        let (layer, large) = (sample::rootfs(), sample::large_layer(bytes));
        let kind = "application/vnd.oci.image.layer.v1.tar";
        let config = sample::config_over(&[&layer, &large]);
        self.push(name, config, vec![(layer, kind), (large, kind)]).await
    }

    /// Pushes an image of this configuration and these layers: (as it is sent, media type).
    pub async fn push(&self, name: &str, config: Vec<u8>, layers: Vec<(Vec<u8>, &str)>) -> Digest {
        let reference: Reference = self.name(name).parse().expect("a working registry");
        let layers: Vec<_> = layers
            .into_iter()
            .map(|(sent, kind)| ImageLayer::new(sent, kind.to_owned(), None))
            .collect();
        let config = Config::oci_v1(config, None);
        let mut manifest = OciImageManifest::build(&layers, &config, None);
        manifest.media_type = Some("application/vnd.oci.image.manifest.v1+json".to_owned());
        let client = self.client();
        client
            .push(&reference, &layers, config, &self.auth, Some(manifest))
            .await
            .expect("a working registry");
        let digest =
            client.fetch_manifest_digest(&reference, &self.auth).await.expect("a working registry");
        digest.parse().expect("a working registry")
    }

    /// Pushes an index of manifests that are there: (digest, platform).
    pub async fn push_index(&self, name: &str, entries: serde_json::Value) -> Digest {
        let reference: Reference = self.name(name).parse().expect("a working registry");
        let index = serde_json::json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": entries,
        });
        let manifest: OciManifest = serde_json::from_value(index).expect("a working registry");
        let client = self.client();
        client
            .auth(&reference, &self.auth, oci_client::RegistryOperation::Push)
            .await
            .expect("a working registry");
        client.push_manifest(&reference, &manifest).await.expect("a working registry");
        let digest =
            client.fetch_manifest_digest(&reference, &self.auth).await.expect("a working registry");
        digest.parse().expect("a working registry")
    }

    /// Removes a blob behind the registry's back.
    pub fn lose(&self, blob: Digest) {
        let hex = blob.hex();
        let path = format!("storage/docker/registry/v2/blobs/sha256/{}/{hex}", &hex[..2]);
        fs::remove_dir_all(self.dir.path().join(path)).expect("a working registry");
    }
}
