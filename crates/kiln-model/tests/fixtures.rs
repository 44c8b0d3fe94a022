//! Template fixtures against what is expected of them: every problem, and the plan or
//! why there is none. `UPDATE_EXPECT=1` writes the expectations anew; read them then.

#![expect(clippy::unwrap_used, reason = "test code of an integration test, helpers included")]

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use expect_test::expect_file;
use kiln_model::catalog::{Catalog, CatalogEntry, StoredImage};
use kiln_model::plan::{CheckedTemplate, HostLimits};
use kiln_model::template::TemplateSource;
use kiln_model::{CheckContext, Document, Problem, Sha256, check};

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn catalog() -> Catalog {
    let path = workspace().join("images/catalog.yaml");
    Catalog::parse(&std::fs::read_to_string(path).unwrap(), "images/catalog.yaml").unwrap()
}

/// An image on the shelf for each entry of the catalog.
fn shelf(catalog: &Catalog) -> Vec<StoredImage> {
    catalog.entries().iter().map(stored).collect()
}

fn stored(entry: &CatalogEntry) -> StoredImage {
    StoredImage {
        name: entry.name.clone(),
        version: "1.20250101.0".to_owned(),
        platform: entry.platform.clone(),
        os: entry.os,
        generation: entry.generations[0],
        generations: entry.generations.clone(),
        arch: entry.arch,
        login: entry.login.clone(),
        format: entry.format,
        sha256: Sha256::from_bytes([0xab; 32]),
        virtual_size: 4 << 30,
        path: "/shelf/disk.qcow2".into(),
        stored_at: "2025-01-01T00:00:00Z".to_owned(),
    }
}

const HOST: HostLimits = HostLimits { cpus: 4, memory_mib: 6000 };

fn listed(problems: &[Problem]) -> String {
    let mut text = String::new();
    for problem in problems {
        writeln!(text, "{problem}").unwrap();
        if let Some(help) = &problem.help {
            writeln!(text, "    help: {help}").unwrap();
        }
    }
    text
}

fn outcome(bytes: &[u8], name: &str) -> String {
    let catalog = catalog();
    let document = match Document::parse(bytes, name) {
        Err(problems) => return format!("== not read\n{}", listed(&problems)),
        Ok(document) => document,
    };
    let checked = check(&document, &CheckContext { catalog: &catalog, azure: false });
    let mut text = format!("== problems\n{}", listed(&checked.problems));
    let Some(template) = checked.template else {
        return text;
    };
    let refusals = template.refusals();
    if !refusals.is_empty() {
        write!(text, "== refused\n{}", listed(&refusals)).unwrap();
        return text;
    }
    text.push_str(&planned(&template, &catalog));
    text
}

fn planned(template: &CheckedTemplate, catalog: &Catalog) -> String {
    let TemplateSource::Platform { name, version, .. } = &template.source else {
        unreachable!("other sources are refused");
    };
    match catalog.choose(&shelf(catalog), name, version) {
        Err(error) => format!("== no image\n{error}\n"),
        Ok(image) => match template.plan(&image, HOST) {
            Err(problems) => format!("== no plan\n{}", listed(&problems)),
            Ok(plan) => format!("== plan\n{}", plan.to_json()),
        },
    }
}

fn run_folder(folder: &str) {
    let folder = workspace().join("tests/fixtures/templates").join(folder);
    let mut files: Vec<PathBuf> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|end| end != "expected"))
        .collect();
    files.sort();
    assert!(!files.is_empty());
    for file in files {
        let name = file.file_name().unwrap().to_str().unwrap();
        let text = outcome(&std::fs::read(&file).unwrap(), name);
        assert!(!text.contains("SECRET") || text.contains("== plan"), "{name} shows a secret:\n{text}");
        expect_file![format!("{}.expected", file.display())].assert_eq(&text);
    }
}

#[test]
fn reference_2020() {
    run_folder("reference-2020");
}

#[test]
fn wild() {
    run_folder("wild");
}

#[test]
fn versions() {
    run_folder("versions");
}

/// What ships must read, and each of its names must choose an image.
#[test]
fn the_shipped_catalog_is_good() {
    let catalog = catalog();
    let shelf = shelf(&catalog);
    for entry in catalog.entries() {
        for served in &entry.platform {
            let chosen = catalog.choose(&shelf, &served.name(), "latest").unwrap();
            assert_eq!(chosen.name, entry.name);
            assert_eq!(Some(chosen.generation), served.generation);
        }
    }
    let find = |name: &str| catalog.entry(name).is_some();
    for name in ["debian-12", "ubuntu-18.04", "ubuntu-20.04", "ubuntu-22.04", "ubuntu-24.04"] {
        assert!(find(name), "{name}");
    }
    assert!(find("almalinux-9") && find("rocky-9") && find("debian-12-genericcloud"));
}

/// `--azure` turns portability notes into errors, and nothing else.
#[test]
fn azure_is_stricter() {
    let bytes = std::fs::read(workspace().join("tests/fixtures/templates/wild/oddities.jsonc")).unwrap();
    let document = Document::parse(&bytes, "oddities.jsonc").unwrap();
    let catalog = catalog();
    let here = check(&document, &CheckContext { catalog: &catalog, azure: false });
    let there = check(&document, &CheckContext { catalog: &catalog, azure: true });
    assert!(here.template.is_some() && there.template.is_none());
    assert_eq!(here.problems.len(), there.problems.len());
    let errors: Vec<String> = there.problems.errors().map(|p| p.message.clone()).collect();
    assert_eq!(
        errors,
        ["does not work in Azure: Validation failed: 'ImageTemplate': Missing field 'identity'"]
    );
}

/// The document `kiln validate --json` prints.
#[test]
fn problems_as_json() {
    let bytes = std::fs::read(workspace().join("tests/fixtures/templates/wild/oddities.jsonc")).unwrap();
    let document = Document::parse(&bytes, "oddities.jsonc").unwrap();
    let catalog = catalog();
    let checked = check(&document, &CheckContext { catalog: &catalog, azure: true });
    expect_file!["../../../tests/fixtures/golden/problems.json"]
        .assert_eq(&checked.problems.to_json("oddities.jsonc"));
}
