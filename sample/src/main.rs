//! The sample challenge. It serves a page that shows where it runs: its environment, limits,
//! headers, users and mounts. One static file is the whole image.
//!
//! For tests it also plays other parts: commands with known ends, and a hostile tenant
//! (`probe …`). Those are no secret and no danger: what they try must fail in every stack.

mod facts;
mod json;
mod page;
mod tools;
mod web;

use std::process::ExitCode;

const USAGE: &str = "\
usage: sample [serve] [--port PORT] [--udp PORT]   serve the page ($PORT, else 80); echo datagrams
       sample json                                 print what /json shows
       sample print LINES | exit CODE | cat | touch FILE | exists FILE | fetch URL
       sample terminal                             tell the terminal's size until q is typed; code 5
       sample sleep | ignore-term                  run until ended; the latter needs SIGKILL
       sample probe NAME [ARGUMENT…] [hold]        try what a stack must not be able to do
";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args.as_slice() {
        [] => web::serve(&[]),
        ["serve", options @ ..] => web::serve(options),
        [first, ..] if first.starts_with("--") && *first != "--help" => web::serve(&args),
        ["json"] => {
            println!("{}", facts::gather().json(&[]));
            ExitCode::SUCCESS
        }
        ["probe", name, arguments @ ..] => stackd_probe::run(name, arguments),
        _ => match tools::run(&args) {
            Some(code) => code,
            None => {
                eprint!("{USAGE}");
                ExitCode::from(2)
            }
        },
    }
}
