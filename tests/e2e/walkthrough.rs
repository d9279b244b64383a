//! The page for people with a CTF platform, followed to the letter: its commands, in its order, from
//! nothing to a player's stack that answers, with what it shows compared to what is printed.
//!
//! They run in a network of their own, so that the page's own address is free there.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use stackd_testkit::{sample, within};

use crate::IMAGE;
use crate::leftovers::Leftovers;
use crate::server::stackd;

const GUIDE: &str = include_str!("../../docs/behind-your-ctf-platform.md");
/// What the page promises.
const PROMISED: Duration = Duration::from_secs(5 * 60);
/// The moment after which the page says that the stack runs.
const WAITS: &str = r#"
until stack=$(curl -s -H "Authorization: Bearer $TOKEN" http://127.0.0.1:8080/api/challenges/1/stack)
    [[ $stack == *'"status":"running"'* ]]; do :; done
"#;
/// The address that a player reads out of the answer.
const GOES: &str = r#"
port=${stack#*'"node_port":'}
printf '\n@@there\n'
curl -s -f "http://127.0.0.1:${port%%[,\}]*}/healthz"
"#;

/// One command of the page, and what it shows below it.
struct Step {
    command: String,
    shown: Vec<&'static str>,
}

/// The commands of each part of the page, up to what is for later.
fn parts() -> Vec<Vec<Step>> {
    let (now, _) = GUIDE.split_once("\n# In earnest").expect("two halves");
    now.split("\n## ").skip(1).map(steps).collect()
}

fn steps(part: &'static str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let (mut inside, mut here) = (false, false);
    for line in part.lines() {
        if line.starts_with("```") {
            inside = line == "```console";
        } else if here {
            // What stands in a here-document is the command's.
            let step = steps.last_mut().expect("it has begun");
            let _ = write!(step.command, "\n{line}");
            here = line != "END";
        } else if inside && let Some(command) = line.strip_prefix("# ") {
            here = command.ends_with("<<'END'");
            steps.push(Step { command: command.to_owned(), shown: Vec::new() });
        } else if inside {
            steps.last_mut().expect("a command comes first").shown.push(line);
        }
    }
    steps
}

/// A line without what differs from one time to the next: a stack's id, and a port.
fn plain(line: &str) -> String {
    let mut plain = String::new();
    for (n, part) in line.split("stack-").enumerate() {
        let id = part.bytes().take_while(u8::is_ascii_hexdigit).count();
        plain.push_str(if n == 0 { part } else { &part[id..] });
    }
    let port = plain.split_once("\"node_port\":").map(|(_, rest)| rest.to_owned());
    let digits = port.map(|rest| rest.chars().take_while(char::is_ascii_digit).collect::<String>());
    digits.map_or(plain.clone(), |digits| plain.replace(&digits, ""))
}

/// Whether what was printed is what the page shows, which leaves some out (`…`).
fn is_shown(shown: &str, printed: &str) -> bool {
    let (shown, printed) = (plain(shown), plain(printed));
    match shown.split_once('…') {
        Some((begin, end)) => printed.starts_with(begin.trim_end()) && printed.ends_with(end),
        None => shown == printed,
    }
}

#[tokio::test]
async fn a_stranger_is_there_in_five_minutes() {
    let directory = tempfile::tempdir().expect("a directory");
    let place = directory.path().join("ctf").display().to_string();
    let image = directory.path().join("image.tar");
    std::fs::write(&image, sample::docker_archive(&[IMAGE])).expect("a file");

    let parts = parts();
    assert_eq!(parts.len(), 5, "the page's parts");
    let mut script = String::from(
        "set -eu -o pipefail\nip link set lo up\ntrap 'kill $(jobs -p) 2>/dev/null || true; wait' EXIT\n",
    );
    let mut number = 0;
    for (part, steps) in parts.iter().enumerate() {
        for step in steps {
            let command = step.command.replace("/tmp/ctf", &place);
            let _ = writeln!(script, "printf '\\n@@{number}\\n'\n{command}");
            if command.contains("-X POST") && part == 3 {
                script.push_str(WAITS);
            }
            number += 1;
        }
        match part {
            // There is no registry here: then the page says to give the machine the image first.
            0 => script.push_str(&format!("stackd image load {} >&2\n", image.display())),
            3 => script.push_str(GOES),
            _ => {}
        }
    }

    let cgroup = format!("stackd-e2e-{}-walkthrough", std::process::id());
    let program = stackd();
    let path = std::env::var("PATH").unwrap_or_default();
    let path = format!("{}:{path}", program.parent().expect("a directory").display());
    let mut command = tokio::process::Command::new("unshare");
    command
        .args(["--net", "bash", "-c", &script])
        .env("PATH", path)
        .env("STACKD_CGROUP_PARENT", &cgroup)
        .env_remove("STACKD_API_KEY")
        .env_remove("STACKD_SERVER")
        .kill_on_drop(true);
    let begun = Instant::now();
    let output = within("all of it is done", command.output()).await.expect("it runs");
    let took = begun.elapsed();
    let log = std::fs::read_to_string(format!("{place}/server.log")).unwrap_or_default();
    // No node port of that network is one of ours.
    let leftovers = Leftovers::of(directory.path(), (1, 0), cgroup);
    let left = leftovers.all_gone().await;
    leftovers.end();
    let printed = String::from_utf8_lossy(&output.stdout);
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}\n{printed}\n{told}\n{log}", output.status);
    assert_eq!(left, Ok(()), "{log}");

    for (number, step) in parts.iter().flatten().enumerate() {
        let (_, rest) = printed.split_once(&format!("\n@@{number}\n")).expect("it was come to");
        let own = rest.split_once("\n@@").map_or(rest, |(own, _)| own);
        let own: Vec<_> = own.lines().filter(|line| !line.is_empty()).collect();
        let alike = own.len() == step.shown.len()
            && step.shown.iter().zip(&own).all(|(shown, printed)| is_shown(shown, printed));
        // The page does not show everything, but nothing else than what comes.
        assert!(alike || step.shown.is_empty(), "{}\n{:#?}\n{own:#?}", step.command, step.shown);
    }
    assert!(printed.contains("\n@@there\nok\n"), "{printed}");
    println!("from nothing to the end of the page: {took:?}");
    assert!(took < PROMISED, "{took:?}");
}
