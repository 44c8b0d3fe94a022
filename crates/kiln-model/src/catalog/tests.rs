use std::cmp::Ordering;

use expect_test::expect_file;

use super::*;

const HEAD: &str = "format: 1\nimages:\n";

fn entry(name: &str, platform: &str, more: &str) -> String {
    format!(
        "  - name: {name}\n    platform: [{platform}]\n    os: linux\n    generations: [V2, V1]\n    arch: x86_64\n    login: cloud-init\n    format: qcow2\n{more}"
    )
}

const RECIPE: &str = "    source: {recipe: {folder: x}}\n";

fn parse(text: &str) -> Result<Catalog, String> {
    Catalog::parse(text, "test").map_err(|error| {
        let mut text = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(cause) = source {
            text = format!("{text}: {cause}");
            source = cause.source();
        }
        text
    })
}

fn name(text: &str) -> PlatformName {
    let parts: Vec<&str> = text.split(':').collect();
    PlatformName { publisher: parts[0].into(), offer: parts[1].into(), sku: parts[2].into() }
}

fn stored(entry: &CatalogEntry, version: &str, stored_at: &str) -> StoredImage {
    StoredImage {
        name: entry.name.clone(),
        version: version.to_owned(),
        platform: entry.platform.clone(),
        os: entry.os,
        generation: entry.generations[0],
        generations: entry.generations.clone(),
        arch: entry.arch,
        login: entry.login.clone(),
        format: entry.format,
        sha256: Sha256::from_bytes([1; 32]),
        virtual_size: 1 << 30,
        path: "/x".into(),
        stored_at: stored_at.to_owned(),
    }
}

#[test]
fn entries_that_contradict_themselves_are_named() {
    let served = "{publisher: p, offer: o, sku: s}";
    for (text, part) in [
        (entry("UPPER", served, RECIPE), "lower-case"),
        (entry("..", served, RECIPE), "lower-case"),
        (entry("a", served, RECIPE).replace("[V2, V1]", "[]"), "boots in no generation"),
        (
            entry("a", "{publisher: p, offer: o, sku: s, generation: V1}", RECIPE)
                .replace("[V2, V1]", "[V2]"),
            "cannot boot",
        ),
        (entry("a", "{publisher: p, offer: o, sku: s}, {publisher: P, offer: O, sku: S}", RECIPE), "twice"),
        (
            entry("a", served, RECIPE) + &entry("a", "{publisher: p, offer: o, sku: t}", RECIPE),
            "has this name",
        ),
        (entry("a", served, RECIPE) + &entry("b", served, RECIPE), "served by \"a\""),
        (
            entry("a", served, RECIPE).replace("cloud-init", "{credentials: {user: u, passwordFile: /p}}"),
            "login: credentials are for an installed Windows",
        ),
        (entry("a", served, "    source: {recipe: {folder: ../x}}\n"), "not below"),
        (entry("a", served, "    source: {recipe: {folder: /x}}\n"), "not below"),
        (
            entry(
                "a",
                served,
                "    source: {url: {addresses: [], checksum: {file: {addresses: [https://h/c], algorithm: sha256}}}}\n",
            ),
            "no address",
        ),
        (
            entry(
                "a",
                served,
                "    source: {url: {addresses: [https://h/i], checksum: {file: {addresses: [], algorithm: sha256}}}}\n",
            ),
            "checksum file has no address",
        ),
        (
            entry(
                "a",
                served,
                "    source: {url: {addresses: ['file:///i'], checksum: {file: {addresses: [https://h/c], algorithm: sha256}}}}\n",
            ),
            "no http or https",
        ),
    ] {
        let error = parse(&format!("{HEAD}{text}")).expect_err(part);
        assert!(error.contains(part), "{error}");
    }
}

/// An entry of a Windows, with this below `login:`.
fn installed(login: &str) -> String {
    entry("a", "", RECIPE)
        .replace("os: linux", "os: windows")
        .replace("login: cloud-init", &format!("login:\n{login}"))
}

#[test]
fn an_installed_windows_is_written_as_a_person_would() {
    let digest = "2c6ff6902a4a52deee69e8db26d0036a53388651008aaf31795bb20dabd21fd8";
    let read =
        |login: &str| parse(&format!("{HEAD}{}", installed(login))).unwrap().entries()[0].login.clone();
    let login =
        read("      credentials:\n        user: builder\n        passwordFile: /etc/kiln/golden.password\n");
    let Login::Credentials(credentials) = &login else { panic!("{login:?}") };
    assert_eq!((credentials.user(), credentials.port()), ("builder", 5986));
    assert_eq!(credentials.password_file(), std::path::Path::new("/etc/kiln/golden.password"));
    assert_eq!(credentials.listener(), Listener::Https { certificate: None });
    // What is absent stays absent.
    assert_eq!(
        serde_json::to_value(&login).unwrap(),
        serde_json::json!({"credentials": {"user": "builder", "passwordFile": "/etc/kiln/golden.password"}})
    );

    let colons: Vec<String> = digest
        .to_uppercase()
        .as_bytes()
        .chunks(2)
        .map(|pair| String::from_utf8_lossy(pair).into_owned())
        .collect();
    let pinned = read(&format!(
        "      credentials: {{user: 'LAB\\b', passwordFile: /p, transport: https, port: 15986, certificateSha256: '{}'}}\n",
        colons.join(":")
    ));
    let Login::Credentials(credentials) = &pinned else { panic!("{pinned:?}") };
    assert_eq!(credentials.port(), 15986);
    assert_eq!(credentials.listener(), Listener::Https { certificate: Some(digest.parse().unwrap()) });
    assert_eq!(
        pinned.to_string(),
        format!(
            "its own account LAB\\b, password in /p, WinRM over HTTPS on port 15986, certificate {digest}"
        )
    );
    let plain = read("      credentials: {user: b, passwordFile: /p, transport: http}\n");
    assert!(plain.to_string().ends_with("over HTTP on port 5985"), "{plain}");
    for login in [login, pinned, plain] {
        let text = serde_json::to_string(&login).unwrap();
        assert_eq!(serde_json::from_str::<Login>(&text).unwrap(), login, "{text}");
    }
}

#[test]
fn credentials_that_cannot_be_tried_say_which_field_and_what_to_do() {
    let digest = "0".repeat(64);
    for (fields, part) in [
        ("passwordFile: /p".to_owned(), "user"),
        ("user: u".to_owned(), "passwordFile"),
        ("user: '', passwordFile: /p".to_owned(), "user: it is empty; give the name"),
        ("user: \"u\\n\", passwordFile: /p".to_owned(), "control character"),
        (
            "user: u, passwordFile: p".to_owned(),
            "passwordFile: \"p\" is no absolute path; write the whole one",
        ),
        ("user: u, passwordFile: /p, port: 0".to_owned(), "port: 0 is none; leave it out"),
        ("user: u, passwordFile: /p, port: 70000".to_owned(), "70000"),
        ("user: u, passwordFile: /p, transport: ssh".to_owned(), "ssh"),
        ("user: u, passwordFile: /p, password: p".to_owned(), "password"),
        (
            "user: u, passwordFile: /p, certificateSha256: abc".to_owned(),
            "certificateSha256: \"abc\" is no digest",
        ),
        (
            format!("user: u, passwordFile: /p, transport: http, certificateSha256: '{digest}'"),
            "certificateSha256: over plain HTTP no certificate is shown; take it out",
        ),
    ] {
        let text = format!("{HEAD}{}", installed(&format!("      credentials: {{{fields}}}\n")));
        let error = parse(&text).expect_err(part);
        assert!(error.contains(part), "{part}: {error}");
        // The place: line 7 of the file has `login`.
        assert!(error.contains("line 8") || error.contains("login"), "{error}");
    }
}

#[test]
fn newer_and_foreign_files_are_refused() {
    for (text, part) in [
        ("format: 2\nshelves: {}\n", "use a newer Kiln"),
        ("images: []\n", "no usable \"format\""),
        ("format: 0\nimages: []\n", "no usable \"format\""),
        ("format: one\nimages: []\n", "no usable \"format\""),
        ("format: 1\nimages: []\nmore: 1\n", "more"),
        ("format: 1\nimages: [{name: a}]\n", "cannot be read"),
        ("][", "cannot be read"),
    ] {
        let error = parse(text).expect_err(text);
        assert!(error.contains(part), "{text}: {error}");
    }
    assert!(parse("format: 1\nimages: []\n").unwrap().entries().is_empty());
}

#[test]
fn a_users_catalog_goes_over_the_shipped_one() {
    let shipped = parse(&format!(
        "{HEAD}{}{}",
        entry("a", "{publisher: p, offer: o, sku: a}", RECIPE),
        entry("b", "{publisher: p, offer: o, sku: b}", RECIPE)
    ))
    .unwrap();
    let own = parse(&format!(
        "{HEAD}{}{}",
        entry("b", "{publisher: p, offer: o, sku: b2}", RECIPE),
        entry("c", "{publisher: P, offer: O, sku: A}", RECIPE)
    ))
    .unwrap();
    let both = shipped.overlaid(own);
    let names: Vec<&str> = both.entries().iter().map(|entry| entry.name.as_str()).collect();
    assert_eq!(names, ["b", "c", "a"]);
    assert_eq!(both.find(&name("p:o:a")).unwrap().name, "c");
    assert!(both.find(&name("p:o:b")).is_none(), "b is the user's now");
    assert_eq!(both.find(&name("P:o:B2")).unwrap().name, "b");
}

#[test]
fn the_newest_of_the_named_image_is_chosen() {
    let catalog = parse(&format!(
        "{HEAD}{}",
        entry(
            "a",
            "{publisher: p, offer: o, sku: s, generation: V1}, {publisher: p, offer: o, sku: s-gen2, generation: V2}, {publisher: p, offer: o, sku: any}",
            RECIPE
        )
    ))
    .unwrap();
    let entry = catalog.entry("a").unwrap();
    let shelf = [
        stored(entry, "12.9.0", "2025-03-01T00:00:00Z"),
        stored(entry, "12.10.0", "2025-01-01T00:00:00Z"),
        stored(entry, "12.10.0", "2025-02-01T00:00:00Z"),
        stored(entry, "9", "2025-12-01T00:00:00Z"),
    ];
    let chosen = catalog.choose(&shelf, &name("P:O:S"), "latest").unwrap();
    assert_eq!((chosen.version.as_str(), chosen.stored_at.as_str()), ("12.10.0", "2025-02-01T00:00:00Z"));
    assert_eq!(chosen.generation, Generation::V1);
    assert_eq!(catalog.choose(&shelf, &name("p:o:s-gen2"), "Latest").unwrap().generation, Generation::V2);
    assert_eq!(catalog.choose(&shelf, &name("p:o:any"), "9").unwrap().generation, Generation::V2);
    let error = catalog.choose(&shelf, &name("p:o:s"), "13").unwrap_err();
    assert_eq!(
        error.to_string(),
        "the library has a for p:o:s, but not version 13: it has 9, 12.9.0, 12.10.0"
    );
}

#[test]
fn a_missing_image_says_what_to_run() {
    let url = "    source: {url: {addresses: [https://h/i], checksum: {file: {addresses: [https://h/c], algorithm: sha512}}}}\n";
    let catalog = parse(&format!(
        "{HEAD}{}{}",
        entry("debian-12", "{publisher: Debian, offer: debian-12, sku: '12'}", RECIPE),
        entry("ubuntu-22.04", "{publisher: Canonical, offer: ubuntu, sku: '22'}", url)
    ))
    .unwrap();
    for (wanted, text) in [
        (
            "debian:debian-12:12",
            "the image debian-12 for debian:debian-12:12 is not in the library: run `kiln images build debian-12`",
        ),
        (
            "canonical:ubuntu:22",
            "the image ubuntu-22.04 for canonical:ubuntu:22 is not in the library: run `kiln images pull ubuntu-22.04`",
        ),
        (
            "Debian:debian-12:13",
            "no image is known for Debian:debian-12:13; similar names are Debian:debian-12:12. Or import one with `kiln images import`",
        ),
        ("a:b:c", "no image is known for a:b:c: import one with `kiln images import`"),
    ] {
        assert_eq!(catalog.choose(&[], &name(wanted), "latest").unwrap_err().to_string(), text);
    }
}

#[test]
fn imported_images_are_found_by_their_own_record() {
    let catalog = Catalog::default();
    let record = parse(&format!(
        "{HEAD}{}",
        entry("mine", "{publisher: me, offer: o, sku: s, generation: V1}", "    source: imported\n")
    ))
    .unwrap();
    let image = stored(record.entry("mine").unwrap(), "1", "2025-01-01T00:00:00Z");
    let wanted = name("ME:o:s");
    assert_eq!(
        catalog.choose(std::slice::from_ref(&image), &wanted, "latest").unwrap().generation,
        Generation::V1
    );
    let known = catalog.with_stored(std::slice::from_ref(&image));
    assert_eq!(known.find(&wanted).unwrap().source, CatalogSource::Imported);
    let mut renamed = image.clone();
    renamed.version = "2".to_owned();
    renamed.platform[0].sku = "t".to_owned();
    let known = known.with_stored(std::slice::from_ref(&renamed));
    assert_eq!(known.entries().len(), 1);
    assert!(known.find(&wanted).is_some() && known.find(&name("me:o:t")).is_some());
    assert_eq!(
        known.choose(&[], &wanted, "latest").unwrap_err().to_string(),
        "the image mine for ME:o:s is not in the library: run `kiln images import FILE --name mine`"
    );
}

#[test]
fn versions_compare_number_by_number() {
    for (a, b, order) in [
        ("12.9", "12.10", Ordering::Less),
        ("1", "1.0", Ordering::Less),
        ("01.2", "1.2", Ordering::Equal),
        ("20250101", "20241231", Ordering::Greater),
        ("1.x", "1.0", Ordering::Less),
        ("99999999999999999999999999", "100000000000000000000000000", Ordering::Less),
        ("", "0", Ordering::Less),
    ] {
        assert_eq!(compare_versions(a, b), order, "{a} {b}");
        assert_eq!(compare_versions(b, a), order.reverse(), "{b} {a}");
    }
}

/// The format is a promise: what this build writes about an entry, and reads again.
#[test]
fn the_entry_format_is_golden() {
    let url = "    source: {url: {addresses: [https://h/i], version: '1', checksum: {sha256: 2c6ff6902a4a52deee69e8db26d0036a53388651008aaf31795bb20dabd21fd8}}}\n";
    let catalog = parse(&format!(
        "{HEAD}{}{}{}{}",
        entry("a", "{publisher: p, offer: o, sku: s, generation: V1}", url),
        entry("b", "", "    source: {url: {addresses: [https://h/i], checksum: {file: {addresses: [https://h/c], algorithm: sha512}}}}\n"),
        entry("c", "", "    source: imported\n"),
        entry("d", "", "    source: imported\n").replace("os: linux", "os: windows").replace(
            "login: cloud-init",
            "login: {credentials: {user: u, passwordFile: /p, port: 5987, certificateSha256: 2c6ff6902a4a52deee69e8db26d0036a53388651008aaf31795bb20dabd21fd8}}"
        )
    ))
    .unwrap();
    let json = crate::json::pretty(&catalog.entries());
    expect_file!["../../../../tests/fixtures/golden/catalog-entries.json"].assert_eq(&json);
    let again: Vec<CatalogEntry> = serde_json::from_str(&json).unwrap();
    assert_eq!(again, catalog.entries());
}
