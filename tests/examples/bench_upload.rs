//! Uploads over WinRM: Kiln's client against a loop that does what Packer's uploader does (lines of base64 by echo), on
//! the same lab server, interleaved.
//!
//!   bench_upload [MIB] [ROUNDS]      10 MiB and 5 rounds unless told; one JSON line at the end
//!
//! The lab's `echo` starts no process, so the yardstick is quicker here than in a Windows: the ratio is a lower bound.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a benchmark fails by a panic")]
#![expect(clippy::print_stdout, reason = "its table is what it is for")]

use std::io::Read as _;
use std::time::{Duration, Instant};

use kiln_guest::winrm::{Authentication, CertificatePin, Password, Transport, WinrmGuest, WinrmLogin};
use kiln_host::digest::sha256;
use kiln_host::wait::Control;
use kiln_tests::lab::{Lab, PASSWORD, USER};
use serde_json::json;

const GOAL: f64 = 20.0;
const LIMIT: Duration = Duration::from_secs(600);

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let mut args = std::env::args().skip(1).map(|word| word.parse().expect("a number"));
    let (mib, rounds): (u64, usize) =
        (args.next().unwrap_or(10), args.next().map_or(5, |n| n.try_into().unwrap()));
    let Some(lab) = Lab::start(&["--make-cert"]).filter(Lab::has_engine) else {
        panic!("the lab is not installed (scripts/lab), or KILN_PWSH names no PowerShell engine");
    };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file.bin");
    let mut bytes = Vec::new();
    std::fs::File::open("/dev/urandom").unwrap().take(mib << 20).read_to_end(&mut bytes).unwrap();
    std::fs::write(&file, &bytes).unwrap();
    let digest = sha256(&bytes);
    let control = Control::ending_in(LIMIT);
    let pin = CertificatePin::from_sha256(&lab.pin().unwrap()).unwrap();
    let login = WinrmLogin {
        addr: lab.address(),
        transport: Transport::Https { pin, authentication: Authentication::Negotiate },
        user: USER.to_owned(),
        password: Password::new(PASSWORD),
        recorder: None,
    };
    let guest = WinrmGuest::connect(login, |_| {}, &control).await.unwrap();
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    println!("{mib} MiB over WinRM, HTTPS, {rounds} rounds");
    println!("{:>6} {:>10} {:>10}", "round", "kiln s", "echoes s");
    for round in 1..=rounds {
        let begun = Instant::now();
        guest.upload(&file, "C:/ours.bin", digest, |_| {}, &control).await.unwrap();
        ours.push(begun.elapsed().as_secs_f64());
        theirs.push(lab.upload_by_echoes(&file, "C:/theirs.bin").as_secs_f64());
        println!("{round:>6} {:>10.2} {:>10.2}", ours[round - 1], theirs[round - 1]);
    }
    guest.close().await;
    let (ours, theirs) = (median(ours), median(theirs));
    let ratio = theirs / ours;
    println!("median {ours:>10.2} {theirs:>10.2}   {ratio:.1} x as fast; goal {GOAL} x");
    println!(
        "{}",
        json!({ "format": 1, "mib": mib, "rounds": rounds, "kilnSeconds": ours, "echoSeconds": theirs, "ratio": ratio })
    );
}

fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}
