//! The server's certificate under the strictest rules that clients have.

use std::time::Duration;

use kiln_tests::daemon::Daemon;
use kiln_tests::kiln::Kiln;
use kiln_tests::program::{command, finish};

#[test]
fn openssl_and_python_accept_the_chain_strictly() {
    let kiln = Kiln::empty();
    let daemon = Daemon::start(&kiln);
    let ca = daemon.ca();
    let port = daemon.url().rsplit(':').next().unwrap().to_owned();
    let mut verify = command("openssl");
    verify.args([
        "s_client",
        "-verify_return_error",
        "-x509_strict",
        "-verify_hostname",
        "localhost",
        "-CAfile",
    ]);
    verify.arg(&ca).args(["-connect", &format!("127.0.0.1:{port}"), "-servername", "localhost"]);
    let ended = finish(&mut verify, Duration::from_secs(30));
    assert!(ended.status.success(), "{}{}", ended.text(), ended.stderr);
    assert!(ended.text().contains("Verify return code: 0 (ok)"), "{}", ended.text());

    // What Python 3.13 does by default.
    let script = "import socket, ssl, sys
context = ssl.create_default_context(cafile=sys.argv[1])
context.verify_flags |= ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN
for name in ('localhost', '127.0.0.1'):
    with socket.create_connection(('127.0.0.1', int(sys.argv[2]))) as plain:
        with context.wrap_socket(plain, server_hostname=name) as secure:
            print(name, secure.version())
";
    let mut python = command("python3");
    python.args(["-c", script]).arg(&ca).arg(port);
    let ended = finish(&mut python, Duration::from_secs(30));
    assert!(ended.status.success(), "{}{}", ended.text(), ended.stderr);
}
