//! A terminal with a program at it, as a person has one.

use std::fs::File;
use std::io::{Read, Write};

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use stackd_testkit::within;
use tokio::process::{Child, Command};
use tokio::sync::mpsc;

/// What the person sees, and types.
pub(crate) struct Terminal {
    keyboard: File,
    screen: mpsc::UnboundedReceiver<Vec<u8>>,
    seen: String,
    process: Child,
}

fn size(columns: u16, rows: u16) -> Winsize {
    Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }
}

impl Terminal {
    /// Runs a program with these arguments and variables at a terminal of 91 columns and 17 rows.
    pub(crate) fn start(words: &[&str], variables: &[(&str, String)]) -> Self {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags).expect("a terminal");
        grantpt(&master).expect("a terminal");
        unlockpt(&master).expect("a terminal");
        let name = ptsname(&master, Vec::new()).expect("its name").into_string().expect("a name");
        tcsetwinsize(&master, size(91, 17)).expect("its size");
        let side = || File::options().read(true).write(true).open(&name).expect("its other side");
        let mut command = Command::new("setsid");
        command.args(["--ctty", "--wait"]).args(words).kill_on_drop(true);
        command.envs(variables.iter().map(|(name, value)| (name, value)));
        command.stdin(side()).stdout(side()).stderr(side());
        let process = command.spawn().expect("it runs");
        let mut from: File = master.try_clone().expect("a terminal").into();
        let (sender, screen) = mpsc::unbounded_channel();
        std::thread::spawn(move || {
            let mut data = [0; 4096];
            // It ends with the last program at the terminal.
            while let Ok(length @ 1..) = from.read(&mut data) {
                if sender.send(data[..length].to_vec()).is_err() {
                    break;
                }
            }
        });
        Self { keyboard: master.into(), screen, seen: String::new(), process }
    }

    /// Waits until this has been shown.
    pub(crate) async fn until(&mut self, what: &str) {
        while !self.seen.contains(what) {
            let more = within(what, self.screen.recv()).await;
            let more = more.unwrap_or_else(|| panic!("{what:?} is not shown: {:?}", self.seen));
            self.seen.push_str(&String::from_utf8_lossy(&more));
        }
    }

    pub(crate) fn resize(&self, columns: u16, rows: u16) {
        tcsetwinsize(&self.keyboard, size(columns, rows)).expect("another size");
    }

    pub(crate) fn type_in(&mut self, text: &str) {
        self.keyboard.write_all(text.as_bytes()).expect("typed");
    }

    /// Waits for the program's end: its code.
    pub(crate) async fn ended(mut self) -> i32 {
        let status = within("the program ends", self.process.wait()).await.expect("its status");
        status.code().expect("a code")
    }
}
