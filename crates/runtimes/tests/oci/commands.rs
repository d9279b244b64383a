//! Commands in a running container.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt;
use stackd_core::port::Protocol;
use stackd_core::runtime::{ExecOutput, ExecRequest, Runtime, TerminalSize};

use crate::Body;
use crate::support::*;

pub(crate) fn all(add: &mut dyn FnMut(&str, Body)) {
    add("a_command_has_input_output_a_terminal_and_a_code", |bed| Box::pin(commands(bed)));
    add("a_terminal_changes_its_size_under_way", |bed| Box::pin(resized(bed)));
    add("a_command_is_as_dear_to_the_machine_as_its_container", |bed| Box::pin(oom_score(bed)));
}

async fn commands(bed: Bed) {
    let runtime = bed.open().await;
    let request = request(spec(vec![web()], &[(8080, Protocol::Tcp)]));
    run(&runtime, &request).await;
    let id = request.id;
    assert_eq!(exec(&runtime, id, &["sh", "-c", "echo out; exit 7"]).await, ("out\n".into(), 7));
    assert_eq!(exec(&runtime, id, &["sh", "-c", "kill -9 $$"]).await.1, 137);
    let order = |command: &[&str], terminal, stdin| ExecRequest {
        container: Some("web".to_owned()),
        command: command.iter().map(|word| (*word).to_owned()).collect(),
        terminal,
        stdin,
    };
    let mut session = runtime.exec(id, order(&["cat"], None, true)).await.expect("a command");
    session.input.write(Bytes::from_static(b"said")).await.expect("written");
    session.input.close().await.expect("closed");
    let mut said = Vec::new();
    let mut code = None;
    while let Some(output) = session.output.next().await {
        match output.expect("output") {
            ExecOutput::Stdout(bytes) => said.extend_from_slice(&bytes),
            ExecOutput::Exit(with) => code = Some(with),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((said.as_slice(), code), (&b"said"[..], Some(0)));
    let size = TerminalSize { columns: 91, rows: 17 };
    let order = order(&["sh", "-c", "tty; stty size; echo $TERM; exit 3"], Some(size), true);
    let mut session = runtime.exec(id, order).await.expect("a command");
    let mut text = String::new();
    while let Some(output) = session.output.next().await {
        match output.expect("output") {
            ExecOutput::Stdout(bytes) => text += &String::from_utf8_lossy(&bytes),
            ExecOutput::Exit(3) => break,
            other => panic!("{other:?}: {text}"),
        }
    }
    assert_eq!(text, "/dev/pts/0\r\n17 91\r\nxterm\r\n");
    // Dropping a session ends its command.
    let sleep = ExecRequest {
        container: None,
        command: vec!["sleep".into(), "1234".into()],
        terminal: None,
        stdin: false,
    };
    drop(runtime.exec(id, sleep).await.expect("a command"));
    let deadline = Instant::now() + PATIENCE;
    let look = "ps | grep -q '[s]leep 1234'";
    while exec(&runtime, id, &["sh", "-c", look]).await.1 == 0 {
        assert!(Instant::now() < deadline, "the command goes on");
    }
    let none = runtime.exec(
        id,
        ExecRequest {
            container: None,
            command: vec!["/no/such".into()],
            terminal: None,
            stdin: false,
        },
    );
    let error = none.await.expect_err("it does not exist");
    assert!(error.condition.message.contains("/no/such"), "{error}");
    runtime.remove(id, Duration::ZERO).await.expect("a removal");
}

async fn resized(bed: Bed) {
    let runtime = bed.open().await;
    let request = request(spec(vec![web()], &[(8080, Protocol::Tcp)]));
    run(&runtime, &request).await;
    let shell = ExecRequest {
        container: None,
        command: vec!["sh".into()],
        terminal: Some(TerminalSize { columns: 91, rows: 17 }),
        stdin: true,
    };
    let mut session = runtime.exec(request.id, shell).await.expect("a shell");
    let mut text = String::new();
    let mut code = None;
    let mut asked = 0;
    let next = tokio::time::timeout(PATIENCE, async {
        // Each answer brings on the next question.
        for (question, answer) in
            [("stty size\n", "17 91\r\n"), ("stty size\n", "33 120\r\n"), ("exit 5\n", "")]
        {
            if asked == 1 {
                let size = TerminalSize { columns: 120, rows: 33 };
                session.input.resize(size).await.expect("another size");
            }
            asked += 1;
            session.input.write(Bytes::from(question)).await.expect("written");
            while code.is_none() && (answer.is_empty() || !text.contains(answer)) {
                match session.output.next().await.expect("it goes on").expect("output") {
                    ExecOutput::Stdout(bytes) => text += &String::from_utf8_lossy(&bytes),
                    ExecOutput::Exit(with) => code = Some(with),
                    other => panic!("{other:?}"),
                }
            }
        }
    });
    next.await.unwrap_or_else(|_| panic!("it said {text:?}"));
    assert_eq!(code, Some(5), "{text:?}");
    runtime.remove(request.id, Duration::ZERO).await.expect("a removal");
}

async fn oom_score(bed: Bed) {
    let runtime = bed.open().await;
    let request = request(spec(vec![web()], &[(8080, Protocol::Tcp)]));
    run(&runtime, &request).await;
    let look = ["cat", "/proc/1/oom_score_adj", "/proc/self/oom_score_adj"];
    let (text, _) = exec(&runtime, request.id, &look).await;
    assert_eq!(text, "500\n500\n");
    runtime.remove(request.id, Duration::ZERO).await.expect("a removal");
}
