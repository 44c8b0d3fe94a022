use std::collections::BTreeSet;

use serde_json::Value;

use super::keys::KEYS;
use super::*;

const HASH: &str =
    "$argon2id$v=19$m=19456,t=2,p=1$MDEyMzQ1Njc4OWFiY2RlZg$2qU2PPCEQa34zXzO0WWBEFv2C6CY6HiLvWFr9eSsmT4";

fn parse(text: &str) -> Result<Config, String> {
    Config::parse(text, Path::new("kiln.yaml")).map_err(|error| error.to_string())
}

fn refused(text: &str) -> String {
    parse(text).expect_err(text)
}

/// Dotted paths of what a configuration has; lists are leaves.
fn paths(value: &Value, prefix: &str, found: &mut BTreeSet<String>) {
    let Value::Object(fields) = value else { return };
    for (name, value) in fields {
        let path = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
        paths(value, &path, found);
        found.insert(path);
    }
}

fn keys_of(config: &Config) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    paths(&serde_json::to_value(config).unwrap(), "", &mut found);
    found
}

#[test]
fn the_table_has_every_key_there_is_and_no_other() {
    let documented: BTreeSet<String> = KEYS.iter().map(|key| key.path.to_owned()).collect();
    assert_eq!(documented.len(), KEYS.len(), "a key is documented twice");
    assert_eq!(documented, keys_of(&Config::default()));
    for key in KEYS {
        assert!(key.doc.ends_with('.'), "{}", key.path);
    }
}

#[test]
fn the_example_is_the_defaults() {
    assert_eq!(parse(&Config::example()).unwrap(), Config::default());
}

/// With its comments taken away from the keys, the example sets every one of them.
#[test]
fn every_example_in_the_example_can_be_used() {
    let text = Config::example();
    let mut lines: Vec<String> = Vec::new();
    for line in text.lines() {
        let (margin, rest) = line.split_at(line.len() - line.trim_start().len());
        let example = rest.strip_prefix('#').filter(|rest| !rest.starts_with(' ') || rest.starts_with("  "));
        let Some(example) = example else {
            lines.push(line.to_owned());
            continue;
        };
        let line = format!("{margin}{example}");
        // An example stands below the default of the same key, and takes its place.
        let name = |line: &str| line.split(':').next().map(str::to_owned);
        if lines.last().is_some_and(|last| name(last) == name(&line)) {
            lines.pop();
        }
        lines.push(line);
    }
    let config = parse(&lines.join("\n")).unwrap();
    let Config {
        data,
        listen,
        public_url,
        socket,
        tls,
        access,
        environment,
        runs,
        checkpoints: _,
        retention,
        inputs,
        templates: _,
    } = &config;
    assert!(data.is_some() && listen.len() == 2 && public_url.is_some());
    assert!(socket.path.is_some() && socket.mode == Some(SocketMode(0o660)) && socket.group.is_some());
    assert!(tls.certificate.is_some() && tls.key.is_some() && tls.names.len() == 2);
    assert_eq!(access.principals.len(), 1);
    assert_eq!(access.managed_identity.http, Some(8442));
    assert!(environment.tenant.is_some() && environment.location.is_some());
    assert!(environment.subscriptions.len() == 1 && environment.resource_groups.len() == 2);
    assert!(runs.memory_mib.is_some() && runs.cpus.is_some() && runs.worker_user.is_some());
    assert!(retention.size_gib.is_some() && inputs.ca_file.is_some() && inputs.file_roots.len() == 1);
}

#[test]
fn nothing_and_empty_sections_are_the_defaults() {
    for text in ["", "\n# only talk\n", "socket:\ntls:\naccess:\nruns:\n", "{}"] {
        assert_eq!(parse(text).unwrap(), Config::default(), "{text:?}");
    }
}

#[test]
fn a_mistake_is_named_with_its_place_and_key() {
    for (text, expected) in [
        ("listening: []\n", "kiln.yaml:1:1: listening: unknown field"),
        ("tls:\n  name: [x]\n", "kiln.yaml:2:3: tls.name: unknown field"),
        (
            "access:\n  managedIdentity:\n    enable: true\n",
            "kiln.yaml:3:5: access.managedIdentity.enable: unknown",
        ),
        ("retention:\n  days: soon\n", "kiln.yaml:2:9: retention.days:"),
        ("retention:\n  days: -1\n", "kiln.yaml:2:9: retention.days:"),
        ("retention:\n  days: 1\n  days: 2\n", "kiln.yaml:3:3: retention.days:"),
        ("templates:\n  replace: yes please\n", "kiln.yaml:2:12: templates.replace:"),
        ("listen:\n  - localhost\n", "\"localhost\" is no HOST:PORT"),
        ("listen: [\"::1:80\"]\n", "is no HOST:PORT"),
        ("listen: [\"[::1]:99999\"]\n", "is no HOST:PORT"),
        ("publicUrl: http://kiln\n", "no https://HOST[:PORT]"),
        ("publicUrl: https://kiln/path\n", "no https://HOST[:PORT]"),
        ("socket:\n  mode: \"0400\"\n", "socket.mode: \"0400\" is no mode"),
        ("socket:\n  mode: \"777\"\n", "is no mode"),
        ("environment:\n  tenant: me\n", "environment.tenant: \"me\" is no GUID"),
        ("tls:\n  names: [\"a b\"]\n", "is no host name"),
        ("access:\n  principals:\n    - id: ci\n      role: admin\n", "access.principals.role: "),
        ("data: kiln\n", "kiln.yaml: data: must be an absolute path"),
        ("tls:\n  certificate: /a\n", "tls: certificate and key are given together"),
        ("access:\n  tokenMinutes: 0\n", "access.tokenMinutes: must be from 1 to 1440"),
        (
            "access:\n  managedIdentity:\n    enabled: false\n    http: 1\n",
            "access.managedIdentity.http: needs",
        ),
        ("environment:\n  resourceGroups: [\"a/b\"]\n", "environment.resourceGroups: \"a/b\" is no name"),
        ("environment:\n  location: West US\n", "environment.location: must be"),
        ("runs:\n  cpus: 0\n", "runs.cpus: must be more than 0"),
    ] {
        let error = refused(text);
        assert!(error.contains(expected), "{text}\n{error}");
        assert!(!error.contains('\n'), "{error}");
    }
}

#[test]
fn everything_wrong_is_said_at_once() {
    let error = refused("data: x\nruns:\n  cpus: 0\n  memoryMiB: 0\n");
    assert!(
        error.contains("data: ") && error.contains("runs.cpus: ") && error.contains("runs.memoryMiB: "),
        "{error}"
    );
}

#[test]
fn principals_are_checked() {
    let with = |ids: &[&str]| {
        let items: String = ids
            .iter()
            .map(|id| format!("    - {{id: {id}, role: reader, secretHash: {HASH:?}}}\n"))
            .collect();
        format!("access:\n  principals:\n{items}")
    };
    let config = parse(&with(&["ci", "other"])).unwrap();
    assert_eq!(config.access.principals[1].id, "other");
    assert_eq!(config.access.principals[1].role, Role::Reader);
    assert!(refused(&with(&["ci", "CI"])).contains("access.principals[1].id: \"CI\" is there twice"));
    assert!(refused(&with(&["Managed-Identity"])).contains("managed identity"));
    assert!(refused(&with(&["'a b'"])).contains("must be 1 to 128"));
}

/// Somebody writes the secret where its hash belongs.
#[test]
fn a_secret_in_the_wrong_place_is_not_repeated() {
    const CANARY: &str = "canary-5f2b";
    let costly = HASH.replace("m=19456", "m=9999999");
    let bcrypt = "$2b$12$canary-5f2bxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx";
    for hash in [CANARY, bcrypt, &costly, "$argon2id$v=19$m=8,t=1,p=1$canary-5f2b"] {
        let text =
            format!("access:\n  principals:\n    - id: ci\n      role: reader\n      secretHash: {hash:?}\n");
        let error = Config::parse(&text, Path::new("kiln.yaml")).unwrap_err();
        assert!(!format!("{error} {error:?}").contains("canary"), "{error:?}");
        assert!(!format!("{error:?}").contains("MDEy"), "{error:?}");
        assert!(error.to_string().contains("access.principals.secretHash: "), "{error}");
    }
    let text = format!("access:\n  principals:\n    - {{id: ci, role: reader, secretHash: {HASH:?}}}\n");
    assert!(!format!("{:?}", parse(&text).unwrap()).contains("argon2id"));
}

#[test]
fn numbers_that_look_octal_are_octal() {
    for text in ["socket:\n  mode: 0660\n", "socket:\n  mode: \"0660\"\n", "socket:\n  mode: '660'\n"] {
        assert_eq!(parse(text).unwrap().socket.permissions(), 0o660, "{text}");
    }
    assert_eq!(Config::default().socket.permissions(), 0o600);
    assert_eq!(parse("socket:\n  group: kiln\n").unwrap().socket.permissions(), 0o660);
}

#[test]
fn flags_stand_over_environment_over_file() {
    let config = parse("data: /file\nlisten: [\"127.0.0.1:1\"]\nsocket:\n  path: /file/socket\n").unwrap();
    let environment = Overrides {
        data: Some("/environment".into()),
        listen: Some(vec!["localhost:2".parse().unwrap()]),
        socket: None,
    };
    let flags = Overrides { data: Some("/flag".into()), ..Overrides::default() };
    let config = config.overridden(flags.over(environment));
    assert_eq!(config.data.as_deref(), Some(Path::new("/flag")));
    assert_eq!(config.listen[0].to_string(), "localhost:2");
    assert_eq!(config.socket.path.as_deref(), Some(Path::new("/file/socket")));
}

#[test]
fn a_file_that_is_no_settings_is_not_read_whole() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("kiln.yaml");
    std::fs::write(&path, vec![b'#'; (1 << 20) + 1]).unwrap();
    assert!(Config::read(&path).unwrap_err().to_string().contains("at most"));
    assert!(matches!(Config::read(&dir.path().join("none")), Err(ConfigError::Read { .. })));
}

#[test]
fn a_host_header_is_believed_only_when_it_names_us() {
    let config =
        parse("listen: [\"127.0.0.1:8441\", \"[::]:8441\"]\ntls:\n  names: [kiln.example.org]\n").unwrap();
    let names = Names::new(&config, "Box");
    for (authority, expected) in [
        (Some("localhost:8441"), "https://localhost:8441"),
        (Some("LOCALHOST:9000"), "https://localhost:9000"),
        (Some("[::1]:8441"), "https://[::1]:8441"),
        (Some("box"), "https://box"),
        (Some("kiln.example.org:443"), "https://kiln.example.org:443"),
        (Some("evil.example.org:8441"), "https://localhost:8441"),
        (Some("localhost:8441/x"), "https://localhost:8441"),
        (Some("localhost:8441@evil"), "https://localhost:8441"),
        (Some("user@localhost"), "https://localhost:8441"),
        (Some("localhost:x"), "https://localhost:8441"),
        (Some("[::1]evil:1"), "https://localhost:8441"),
        (Some(""), "https://localhost:8441"),
        (None, "https://localhost:8441"),
    ] {
        assert_eq!(names.base_url(authority), expected, "{authority:?}");
    }
    assert_eq!(names.hosts(), ["127.0.0.1", "::1", "box", "kiln.example.org", "localhost"]);
    let public = parse("publicUrl: https://kiln.example.org/\nlisten: []\n").unwrap();
    assert_eq!(Names::new(&public, "box").url(), "https://kiln.example.org");
    assert_eq!(Names::new(&parse("listen: []\n").unwrap(), "box").url(), "http://localhost");
}

#[test]
fn the_environment_is_made_once_and_told_otherwise_by_the_configuration() {
    let dir = tempfile::tempdir().unwrap();
    let first = Environment::open(dir.path(), &Config::default()).unwrap();
    let again = Environment::open(dir.path(), &Config::default()).unwrap();
    assert_eq!(first.tenant, again.tenant);
    assert_eq!(first.subscriptions, again.subscriptions);
    assert_eq!(first.subscriptions[0].name, "Kiln");
    assert_eq!((&first.resource_groups[..], first.location.as_str()), (&["kiln".to_owned()][..], "local"));
    let config = parse(
        "environment:\n  tenant: 3F2504E0-4F89-41D3-9A0C-0305E82C3301\n  location: here\n  resourceGroups: [a, b]\n",
    )
    .unwrap();
    let told = Environment::open(dir.path(), &config).unwrap();
    assert_eq!(told.tenant, "3f2504e0-4f89-41d3-9a0c-0305e82c3301");
    assert_eq!(told.subscriptions, first.subscriptions);
    assert_eq!((told.resource_groups.len(), told.location.as_str()), (2, "here"));

    let path = dir.path().join("environment.json");
    let newer = std::fs::read_to_string(&path).unwrap().replace("\"format\": 1", "\"format\": 2");
    std::fs::write(&path, &newer).unwrap();
    assert!(matches!(Environment::open(dir.path(), &config), Err(EnvironmentError::Newer { found: 2, .. })));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), newer, "left alone");
    std::fs::write(&path, "{}").unwrap();
    assert!(matches!(Environment::open(dir.path(), &config), Err(EnvironmentError::Damaged { .. })));
}

#[test]
fn the_example_reads_well() {
    let shown: String = Config::example().lines().skip(28).take(30).map(|line| format!("{line}\n")).collect();
    expect_test::expect![[r#"
          #certificate: /etc/kiln/server.pem
          # PEM file: the certificate's private key.
          #key: /etc/kiln/server.key
          # More names and addresses for Kiln's own certificate; localhost, the loopback addresses, the
          # host's name and those of listen and publicUrl are in it.
          names: []
          #names: [kiln.example.org, 192.0.2.7]

        # Who may sign in over TCP. One operator is made at first start: DATA/server/operator.json and
        # operator.secret.
        access:
          # Service principals. id: what clients sign in as. role: operator, or reader (looks, changes
          # nothing). secretHash: printed by `kiln serve --hash-secret`. Who is taken out is out at once,
          # tokens and all.
          principals: []
          #principals:
          #  - id: ci
          #    name: Continuous integration
          #    role: operator
          #    secretHash: $argon2id$v=19$m=19456,t=2,p=1$MDEyMzQ1Njc4OWFiY2RlZg$2qU2PPCEQa34zXzO0WWBEFv2C6CY6HiLvWFr9eSsmT4
          # How long a token is valid. 1 to 1440.
          tokenMinutes: 60
          # Sign-in as `az login --identity` does it, by a secret header (DATA/server/identity.secret).
          managedIdentity:
            # false: /msi/token answers nobody.
            enabled: true
            # operator or reader.
            role: operator
            # Port on 127.0.0.1 that offers /msi/token, and nothing else, by plain http. Left out: https
            # only.
    "#]].assert_eq(&shown);
}
