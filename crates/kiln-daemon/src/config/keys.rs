//! Every key of the settings, once: its place, what it is by itself, an example, what it means.
//!
//! The example file is made from this table, and tests hold the table against the types.

use std::fmt::Write as _;

pub(super) struct Key {
    /// Dotted; a section has neither default nor example.
    pub path: &'static str,
    /// YAML of what it is when left out; none where leaving it out means something else than any value.
    pub default: Option<&'static str>,
    /// YAML shown where there is no default, or in a comment below it.
    pub example: Option<&'static str>,
    pub doc: &'static str,
}

const fn section(path: &'static str, doc: &'static str) -> Key {
    Key { path, default: None, example: None, doc }
}

const fn set(path: &'static str, default: &'static str, doc: &'static str) -> Key {
    Key { path, default: Some(default), example: None, doc }
}

const fn list(path: &'static str, example: &'static str, doc: &'static str) -> Key {
    Key { path, default: Some("[]"), example: Some(example), doc }
}

const fn unset(path: &'static str, example: &'static str, doc: &'static str) -> Key {
    Key { path, default: None, example: Some(example), doc }
}

#[rustfmt::skip]
pub(super) const KEYS: &[Key] = &[
    unset("data", "/srv/kiln", "Folder of images, runs, artifacts and the server's own files. Left out: the user's data folder ($KILN_DATA)."),
    Key {
        path: "listen", default: Some("[\"127.0.0.1:8441\"]"), example: Some("[\"127.0.0.1:8441\", \"[::1]:8441\"]"),
        doc: "Addresses for TCP, always with TLS. Other hosts can connect only when an address that is not loopback is named here. []: no TCP.",
    },
    unset("publicUrl", "https://kiln.example.org:8441", "What clients call this server, where that is not the name they connect to (a proxy, a forwarded port)."),
    section("socket", "The Unix socket of the local command line. Whoever may open it is an operator."),
    unset("socket.path", "/run/kiln/kiln.sock", "Left out: in the user's runtime folder, named after the data folder."),
    unset("socket.mode", "\"0660\"", "Permissions, in octal. Left out: \"0600\", or \"0660\" where a group is named."),
    unset("socket.group", "kiln", "Group that owns the socket. Left out: the daemon's own."),
    section("tls", "Left out: Kiln makes its own certificate authority at first start (DATA/server/tls/ca.pem; give it to the clients) and renews its certificate by itself."),
    unset("tls.certificate", "/etc/kiln/server.pem", "PEM file: the certificate, then the intermediate ones. Read again when it changes."),
    unset("tls.key", "/etc/kiln/server.key", "PEM file: the certificate's private key."),
    list("tls.names", "[kiln.example.org, 192.0.2.7]", "More names and addresses for Kiln's own certificate; localhost, the loopback addresses, the host's name and those of listen and publicUrl are in it."),
    section("access", "Who may sign in over TCP. One operator is made at first start: DATA/server/operator.json and operator.secret."),
    list(
        "access.principals",
        "\n    - id: ci\n      name: Continuous integration\n      role: operator\n      secretHash: $argon2id$v=19$m=19456,t=2,p=1$MDEyMzQ1Njc4OWFiY2RlZg$2qU2PPCEQa34zXzO0WWBEFv2C6CY6HiLvWFr9eSsmT4",
        "Service principals. id: what clients sign in as. role: operator, or reader (looks, changes nothing). secretHash: printed by `kiln serve --hash-secret`. Who is taken out is out at once, tokens and all.",
    ),
    set("access.tokenMinutes", "60", "How long a token is valid. 1 to 1440."),
    section("access.managedIdentity", "Sign-in as `az login --identity` does it, by a secret header (DATA/server/identity.secret)."),
    set("access.managedIdentity.enabled", "true", "false: /msi/token answers nobody."),
    set("access.managedIdentity.role", "operator", "operator or reader."),
    unset("access.managedIdentity.http", "8442", "Port on 127.0.0.1 that offers /msi/token, and nothing else, by plain http. Left out: https only."),
    section("environment", "What Azure's clients are shown around the templates. What is left out is made at first start (DATA/server/environment.json)."),
    unset("environment.tenant", "3f2504e0-4f89-41d3-9a0c-0305e82c3301", "Tenant id."),
    list(
        "environment.subscriptions",
        "\n    - id: 6fa459ea-ee8a-4ca4-894e-db77e160355e\n      name: Kiln",
        "Subscriptions. []: one, named \"Kiln\".",
    ),
    list("environment.resourceGroups", "[images, test]", "Resource groups that are there from the start, in each subscription. []: one, named \"kiln\"."),
    unset("environment.location", "local", "The one location. Left out: local."),
    section("runs", "What runs may use of this host, all together."),
    unset("runs.memoryMiB", "16384", "Left out: what the host has, less a reserve."),
    unset("runs.cpus", "8", "Left out: what the host has."),
    unset("runs.workerUser", "kiln-worker", "User that workers and their guests run as, where the daemon runs as root."),
    section("checkpoints", "Machines kept after each step of a run; a later run goes on at the first step that changed."),
    set("checkpoints.enabled", "true", "false: every run does everything again, and keeps nothing."),
    set("checkpoints.sizeGiB", "20", "Room for all of them; what was used longest ago goes first."),
    set("checkpoints.maxAgeHours", "24", "How long a step that may have used the network is good for. 0: such steps run each time."),
    section("retention", "What is kept of finished runs. `kiln gc --dry-run` shows what would go."),
    set("retention.days", "30", "Days that a finished run is kept."),
    set("retention.perTemplate", "100", "Finished runs kept of each template."),
    unset("retention.sizeGiB", "500", "Runs and artifacts together; the oldest go first. Left out: no limit."),
    section("inputs", "Where the scripts and files that templates name may come from."),
    list("inputs.fileRoots", "[/srv/kiln-inputs]", "Folders of this host that file: addresses may name. []: none may."),
    set("inputs.allowPrivateAddresses", "false", "true: addresses of this host and its link may be fetched from."),
    unset("inputs.caFile", "/etc/ssl/certs/company.pem", "PEM file: certificate authorities to trust, too, when fetching."),
    section("templates", "Beyond Azure's rules."),
    set("templates.replace", "false", "true: a PUT over an existing template replaces it; Azure answers Conflict."),
];

/// Width of comments in the example.
const WIDTH: usize = 100;

pub(super) fn example() -> String {
    let mut text =
        String::from("# Settings of `kiln serve`. Every key may be left out; an unknown one is refused.\n");
    for key in KEYS {
        let depth = key.path.matches('.').count();
        let margin = "  ".repeat(depth);
        let name = key.path.rsplit('.').next().unwrap_or(key.path);
        if depth == 0 {
            text.push('\n');
        }
        comment(&mut text, &margin, key.doc);
        // Writing to a String cannot fail.
        let _ = match (key.default, key.example) {
            (None, None) => writeln!(text, "{margin}{name}:"),
            (Some(default), None) => writeln!(text, "{margin}{name}: {default}"),
            (default, Some(example)) => {
                if let Some(default) = default {
                    let _ = writeln!(text, "{margin}{name}: {default}");
                }
                let shown = if example.starts_with('\n') {
                    format!("{name}:{example}")
                } else {
                    format!("{name}: {example}")
                };
                // Taking the # away sets it: what follows one directly, or two spaces behind it, is no talk.
                for line in shown.lines() {
                    let _ = writeln!(text, "{margin}#{}", line.strip_prefix(&margin).unwrap_or(line));
                }
                Ok(())
            }
        };
    }
    text
}

fn comment(text: &mut String, margin: &str, doc: &str) {
    let mut line = String::new();
    for word in doc.split_whitespace() {
        if !line.is_empty() && margin.len() + line.len() + word.len() + 3 > WIDTH {
            let _ = writeln!(text, "{margin}# {line}");
            line.clear();
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    let _ = writeln!(text, "{margin}# {line}");
}
