//! Two cases of the tiny guest's fault matrix, on a grown-up system: what the others try is the host's alone.

use kiln_tests::kiln::Kiln;
use kiln_tests::template::debian;

const ENDLESS: [&str; 2] = ["echo under way", "while :; do sleep 1; done"];

#[test]
fn canceled_in_a_customizer() {
    let kiln = Kiln::new();
    let running = kiln.start(&debian().shell("forever", ENDLESS));
    running.until_step("customize/1");
    running.interrupt();
    let ended = running.wait().canceled();
    let done = ended.steps_done();
    assert!(done.iter().any(|id| id == "connect") && !done.iter().any(|id| id == "customize/1"), "{done:?}");
    assert!(!ended.log().contains("Finalizing"), "nothing of the build goes on: {}", ended.log());
    kiln.assert_nothing_left();
}

#[test]
fn a_failing_step_leaves_the_next_unrun() {
    let kiln = Kiln::new();
    let template = debian()
        .shell("first", ["echo first ran"])
        .shell("second", ["sudo apt-get install -y no-such-package"])
        .shell("third", ["echo third ran"]);
    let ended = kiln.build(&template).failed();
    assert_eq!(ended.failed_step(), "Shell \"second\"");
    assert!(ended.cause().contains("non-zero exit status: 100"), "{}", ended.cause());
    let log = ended.log();
    assert!(
        log.contains("first ran") && log.contains("no-such-package") && !log.contains("third ran"),
        "{log}"
    );
    kiln.assert_nothing_left();
}
