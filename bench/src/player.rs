//! What a player costs: reads with a token of each kind, and what a create adds.

use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, anyhow, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, RSA_PKCS1_SHA256, RsaKeyPair,
};
use serde_json::{Value, json};

use crate::server::Server;
use crate::stats::{Samples, head};

const SECRET: &str = "bench-0123456789abcdef0123456789abcdef";
const CONNECTIONS: usize = 4;
const AT_ONCE: usize = 16;
const LENGTH: Duration = Duration::from_secs(5);
const CREATES: usize = 500;
const TOKENS: usize = 20_480;

/// What signs tokens.
enum Signer {
    Hs256,
    Rs256(RsaKeyPair),
    Es256(EcdsaKeyPair),
}

impl Signer {
    /// A key of `openssl`'s making, and the option that makes the server trust it.
    fn new(directory: &std::path::Path, kind: &str) -> Result<(Self, [String; 2])> {
        let path = |name: &str| directory.join(format!("{kind}.{name}")).display().to_string();
        let (key, der, public) = (path("key"), path("der"), path("pem"));
        let option = match kind {
            "RSA" => "rsa_keygen_bits:2048",
            "EC" => "ec_paramgen_curve:P-256",
            _ => return Ok((Self::Hs256, ["--player-jwt-secret".into(), SECRET.into()])),
        };
        let openssl = |args: &[&str]| {
            let done = Command::new("openssl").args(args).output()?;
            ensure!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
            Ok(())
        };
        openssl(&["genpkey", "-algorithm", kind, "-pkeyopt", option, "-out", &key])?;
        openssl(&["pkey", "-in", &key, "-pubout", "-out", &public])?;
        openssl(&["pkcs8", "-topk8", "-nocrypt", "-outform", "DER", "-in", &key, "-out", &der])?;
        let der = std::fs::read(der)?;
        let refused = |error| anyhow!("a key of openssl is refused: {error}");
        let signer = if kind == "RSA" {
            Self::Rs256(RsaKeyPair::from_pkcs8(&der).map_err(refused)?)
        } else {
            let algorithm = &ECDSA_P256_SHA256_FIXED_SIGNING;
            let key = EcdsaKeyPair::from_pkcs8(algorithm, &der, &SystemRandom::new());
            Self::Es256(key.map_err(refused)?)
        };
        Ok((signer, ["--player-jwt-public-key".into(), public]))
    }

    /// A token of a user; it differs from that of another number, and not in length.
    fn token(&self, user: usize, number: usize) -> Result<String> {
        let algorithm = match self {
            Self::Hs256 => "HS256",
            Self::Rs256(_) => "RS256",
            Self::Es256(_) => "ES256",
        };
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs();
        let part = |value: Value| BASE64.encode(value.to_string());
        let number = format!("{number:06}");
        let claims = json!({"uid": user, "typ": "access", "exp": now + 3600, "jti": number});
        let head = format!("{}.{}", part(json!({"alg": algorithm, "typ": "JWT"})), part(claims));
        let refused = |_| anyhow!("a token cannot be signed");
        let signature = match self {
            Self::Hs256 => {
                let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, SECRET.as_bytes());
                ring::hmac::sign(&key, head.as_bytes()).as_ref().to_vec()
            }
            Self::Rs256(key) => {
                let mut signature = vec![0; key.public().modulus_len()];
                let random = SystemRandom::new();
                key.sign(&RSA_PKCS1_SHA256, &random, head.as_bytes(), &mut signature)
                    .map_err(refused)?;
                signature
            }
            Self::Es256(key) => {
                let signature = key.sign(&SystemRandom::new(), head.as_bytes());
                signature.map_err(refused)?.as_ref().to_vec()
            }
        };
        Ok(format!("{head}.{}", BASE64.encode(signature)))
    }
}

/// What reads came to.
struct Reads {
    /// Requests a second over all connections, the load generator beside the server.
    rate: f64,
    /// What the server's own processor time for a request was, in microseconds: it does not depend
    /// on what else the machine does.
    cpu_micros: f64,
}

impl Reads {
    /// What the server would answer a second on so many processors of its own.
    fn on(&self, processors: f64) -> f64 {
        processors * 1e6 / self.cpu_micros
    }
}

/// The processor time that the server has used so far.
fn cpu_time(server: &Server) -> Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", server.pid()))?;
    // After the name, which is in parentheses: the 14th and 15th fields of all, in ticks of 10 ms.
    let fields = stat.rsplit_once(") ").context("a name")?.1.split(' ').skip(11).take(2);
    let ticks = fields.map(str::parse::<u64>).sum::<Result<u64, _>>()?;
    Ok(Duration::from_millis(ticks * 10))
}

fn reads(server: &Server, path: &str, headers: &[String]) -> Result<Reads> {
    let mut clients = (0..CONNECTIONS).map(|_| server.client()).collect::<Result<Vec<_>>>()?;
    let mut many = clients[0].many(path, headers, AT_ONCE)?;
    let (since, before) = (Instant::now(), cpu_time(server)?);
    // In turns: while one is read, the server works on the others.
    for client in &mut clients {
        client.ask(&mut many)?;
    }
    let mut total = 0;
    while since.elapsed() < LENGTH {
        for client in &mut clients {
            client.answers(&mut many)?;
            client.ask(&mut many)?;
            total += AT_ONCE;
        }
    }
    for client in &mut clients {
        client.answers(&mut many)?;
        total += AT_ONCE;
    }
    let rate = total as f64 / since.elapsed().as_secs_f64();
    let spent = cpu_time(server)?.saturating_sub(before);
    Ok(Reads { rate, cpu_micros: spent.as_secs_f64() * 1e6 / total as f64 })
}

pub(crate) fn reads_and_creates() -> Result<()> {
    let directory = tempfile::tempdir()?;
    println!(
        "\nreads of a player's stack a second, {CONNECTIONS} connections, {AT_ONCE} at once on each"
    );
    for kind in ["HS256", "RSA", "EC"] {
        let (signer, trust) = Signer::new(directory.path(), kind)?;
        let mut options: Vec<&str> = trust.iter().map(String::as_str).collect();
        options.extend(["--player-create-max", "100000"]);
        let server = Server::with("simulated", &options)?;
        let body = json!({"id": "bench", "name": "Bench", "runtime": "docker", "image": "bench", "port": 80, "cpu_count": 1});
        let made = server.client()?.send("POST", "/challenges", &body.to_string())?;
        ensure!(made.status == 201, "{}", String::from_utf8_lossy(&made.body));
        // More than the server remembers, all of one user.
        let headers = |number| -> Result<String> {
            Ok(format!("authorization: Bearer {}\r\n", signer.token(0, number)?))
        };
        let tokens = (0..TOKENS).map(headers).collect::<Result<Vec<_>>>()?;
        let path = "/api/challenges/1/stack";
        let started = server.client_with(&tokens[0])?.send("POST", path, "")?;
        ensure!(started.status == 201, "{}", String::from_utf8_lossy(&started.body));
        let stack: Value = serde_json::from_slice(&started.body)?;
        let id = stack["stack_id"].as_str().context("an id")?.to_owned();
        let running = format!("/stacks/{id}?wait=running&timeout=30s");
        let running = server.client()?.send("GET", &running, "")?;
        ensure!(running.status == 200, "{}", String::from_utf8_lossy(&running.body));
        let new = reads(&server, path, &tokens)?;
        let known = reads(&server, path, &tokens[..1])?;
        let with_key = reads(&server, &format!("/stacks/{id}"), &[Server::key_header()])?;
        let rows = [
            (format!("{kind}, each token new"), &new),
            (format!("{kind}, one token"), &known),
            ("key".to_owned(), &with_key),
        ];
        for (by, reads) in rows {
            println!(
                "  {by:<22} {:>7.0} /s   {:>5.1} µs of the server's processor time each: {:>7.0} /s on two of its own",
                reads.rate,
                reads.cpu_micros,
                reads.on(2.0)
            );
        }
        let share = (1.0 - known.cpu_micros / new.cpu_micros).max(0.0) * 100.0;
        println!("  verification: {share:.0} % of a read whose token is new");
        if kind == "HS256" {
            creates(&server, &signer)?;
        }
    }
    Ok(())
}

/// The same stack by either way: what is between is what a player's create adds.
fn creates(server: &Server, signer: &Signer) -> Result<()> {
    let pod = "kind: Pod\nspec:\n  containers:\n    - name: challenge\n      image: bench\n      \
               ports: [{containerPort: 80}]\n      resources: {limits: {cpu: 1, memory: 512Mi}}\n";
    let body = json!({"target_port": 80, "pod_spec": pod}).to_string();
    let mut client = server.client()?;
    let (mut plain, mut played) = (Vec::new(), Vec::new());
    for user in 1..=CREATES {
        let since = Instant::now();
        let answer = client.send("POST", "/stacks", &body)?;
        plain.push(since.elapsed());
        ensure!(answer.status == 201, "{}", String::from_utf8_lossy(&answer.body));
        let mut player =
            server.client_with(&format!("authorization: Bearer {}\r\n", signer.token(user, 0)?))?;
        // The connection is made before it is measured.
        player.send("GET", "/livez", "")?;
        let since = Instant::now();
        let answer = player.send("POST", "/api/challenges/1/stack", "")?;
        played.push(since.elapsed());
        ensure!(answer.status == 201, "{}", String::from_utf8_lossy(&answer.body));
    }
    let (plain, played) = (Samples::new(plain), Samples::new(played));
    head("creates, durable, by turns");
    println!("{}", plain.row("POST /stacks"));
    println!("{}", played.row("POST /api/challenges/1/stack"));
    let added = played.median().as_secs_f64() - plain.median().as_secs_f64();
    println!("a player's create adds {:.2} ms", added * 1000.0);
    Ok(())
}
