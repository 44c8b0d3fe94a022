//! How long the store's answers take, on a data folder that `seed` filled: `cargo run --example store_times -- DIR`.

#![expect(clippy::print_stdout, reason = "its result")]

use std::error::Error;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use kiln_daemon::config::{Config, Environment};
use kiln_daemon::daemon::Paths;
use kiln_daemon::gc;
use kiln_daemon::store::*;
use kiln_library::Library;
use kiln_model::run::RunState;

const TIMES: usize = 1000;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let dir = std::env::args().nth(1).ok_or("usage: store_times DIR")?;
    let paths = Paths::new(PathBuf::from(dir));
    let begun = Instant::now();
    let store = Store::open(&paths.database())?;
    store.read(|r| r.unfinished_runs()).await?;
    println!("open, and the first answer: {:?}", begun.elapsed());
    let environment = Environment::open(&paths.server(), &Config::default())?;
    let all = Scope { subscription: environment.subscriptions[0].id.clone(), resource_group: None };

    let mut ids = Vec::new();
    let mut after = None;
    let mut times = Vec::new();
    loop {
        let (scope, place) = (all.clone(), after.take());
        let begun = Instant::now();
        let page = store.read(move |r| r.templates(&scope, place.as_deref(), 100)).await?;
        times.push(begun.elapsed());
        ids.extend(page.items.into_iter().map(|template| template.id));
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    tell("page of 100 templates, all pages", times);
    if ids.is_empty() {
        return Err("there is nothing; run `seed` first".into());
    }
    // Jumps about: neighbours would be in memory already.
    let id = |n: usize| ids[n.wrapping_mul(7919) % ids.len()].clone();

    let mut times = Vec::new();
    for n in 0..TIMES {
        let id = id(n);
        let begun = Instant::now();
        store.read(move |r| r.template(&id)).await?;
        times.push(begun.elapsed());
    }
    tell("a template", times);
    for (what, template, state) in [
        ("page of 100 runs, the newest", false, None),
        ("page of 100 runs of a template", true, None),
        ("page of 100 runs that failed", false, Some(RunState::Failed)),
        ("page of 100 runs of a template that failed", true, Some(RunState::Failed)),
    ] {
        let mut times = Vec::new();
        for n in 0..TIMES / 5 {
            let filter = RunFilter { template: template.then(|| id(n)), state };
            let begun = Instant::now();
            store.read(move |r| r.runs(&filter, None, 100)).await?;
            times.push(begun.elapsed());
        }
        tell(what, times);
    }
    let (mut times, mut after) = (Vec::new(), None);
    loop {
        let place: Option<String> = after.take();
        let begun = Instant::now();
        let page = store.read(move |r| r.runs(&RunFilter::default(), place.as_deref(), 100)).await?;
        times.push(begun.elapsed());
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    tell("page of 100 runs, all pages", times);

    let mut times = Vec::new();
    for n in 0..TIMES / 5 {
        let id = id(n);
        let begun = Instant::now();
        let change = move |w: &Writer<'_>| -> Result<u64, StoreError> {
            let template = w.template(&id)?.ok_or(StoreError::Closed)?;
            w.update_template(&template)
        };
        store.write(change).await?;
        times.push(begun.elapsed());
    }
    tell("a change of a template", times);

    let places = gc::Places {
        runs: paths.runs(),
        artifacts: paths.artifacts(),
        library: Library::open(paths.library())?,
    };
    let begun = Instant::now();
    let plan = gc::plan(&store, &places, &gc::Retention::default(), jiff::Timestamp::now()).await?;
    println!("a plan of retention, {} items: {:?}", plan.items.len(), begun.elapsed());
    Ok(())
}

fn tell(what: &str, mut times: Vec<Duration>) {
    times.sort();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
    println!("{what}: median {:?}, p99 {:?}, max {:?} ({} times)", at(0.5), at(0.99), at(1.0), times.len());
}
