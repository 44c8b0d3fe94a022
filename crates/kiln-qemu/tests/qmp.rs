//! The QMP client against a peer that misbehaves in every way a socket allows. The real QEMU is in `real`.

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use kiln_host::wait::{Control, Interrupted};
    use kiln_qemu::qmp::{Closed, Event, Qmp, QmpError};
    use serde_json::{Value, json};
    use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
    use tokio::net::UnixStream;
    use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
    use tokio::sync::mpsc::UnboundedReceiver;

    const GREETING: &str = r#"{"QMP": {"version": {"qemu": {"major": 7}}, "capabilities": ["oob"]}}"#;

    fn in_time() -> Control {
        Control::ending_in(Duration::from_secs(10))
    }

    /// QEMU's side of the socket.
    struct Peer {
        read: BufReader<OwnedReadHalf>,
        write: OwnedWriteHalf,
    }

    impl Peer {
        fn pair() -> (UnixStream, Self) {
            let (ours, theirs) = UnixStream::pair().unwrap();
            let (read, write) = theirs.into_split();
            (ours, Self { read: BufReader::new(read), write })
        }

        async fn send(&mut self, text: &str) {
            self.write.write_all(text.as_bytes()).await.unwrap();
        }

        async fn command(&mut self) -> Value {
            let mut line = String::new();
            self.read.read_line(&mut line).await.unwrap();
            serde_json::from_str(&line).unwrap()
        }

        async fn answer(&mut self, to: &Value, with: Value) {
            self.send(&format!("{}\n", json!({ "return": with, "id": to["id"] }))).await;
        }

        /// A connection past its negotiation.
        async fn connected() -> (Qmp, UnboundedReceiver<Event>, Self) {
            let (stream, mut peer) = Self::pair();
            let control = in_time();
            let open = Qmp::open(stream, &control);
            let greet = async {
                peer.send(&format!("{GREETING}\r\n")).await;
                let command = peer.command().await;
                assert_eq!(command["execute"], "qmp_capabilities");
                peer.answer(&command, json!({})).await;
            };
            let (opened, ()) = tokio::join!(open, greet);
            let (qmp, events) = opened.unwrap();
            (qmp, events, peer)
        }
    }

    fn closed(error: &QmpError) -> &Closed {
        match error {
            QmpError::Closed { source, .. } => source,
            other => panic!("{other}"),
        }
    }

    #[tokio::test]
    async fn answers_find_their_commands_in_any_order_and_in_pieces() {
        let (qmp, mut events, mut peer) = Peer::connected().await;
        let serve = async {
            let (first, second) = (peer.command().await, peer.command().await);
            peer.send("{\"return\": \"nobody's\", \"id\": 4711}\n\n").await;
            peer.send("{\"event\": \"FROM_THE_FUTURE\", \"data\": {\"x\": 1}, \"news\": []}\n").await;
            peer.send("{\"future\": \"message\"}\n{\"error\": {\"class\": \"GenericError\", \"desc\": \"whose?\"}}\n").await;
            peer.answer(&second, json!("second")).await;
            for piece in json!({ "return": "first", "id": first["id"] }).to_string().as_bytes().chunks(3) {
                peer.write.write_all(piece).await.unwrap();
                tokio::task::yield_now().await;
            }
            peer.send("\n{\"event\": \"STOP\"}\n").await;
        };
        let (first, second, ()) =
            tokio::join!(qmp.execute("one", json!({})), qmp.execute("two", json!({"a": "ü\n"})), serve);
        assert_eq!((first.unwrap(), second.unwrap()), (json!("first"), json!("second")));
        let event = events.recv().await.unwrap();
        assert_eq!((event.name.as_str(), &event.data["x"]), ("FROM_THE_FUTURE", &json!(1)));
        assert_eq!(events.recv().await.unwrap(), Event { name: "STOP".into(), data: json!({}) });
    }

    #[tokio::test]
    async fn a_refusal_keeps_class_and_words() {
        let (qmp, _events, mut peer) = Peer::connected().await;
        let serve = async {
            let command = peer.command().await;
            let error = json!({ "class": "DeviceNotFound", "desc": "Device 'x' not found" });
            peer.send(&format!("{}\n", json!({ "error": error, "id": command["id"] }))).await;
        };
        let (answer, ()) = tokio::join!(qmp.execute("device_del", json!({"id": "x"})), serve);
        let error = answer.unwrap_err();
        assert_eq!(error.to_string(), "QEMU refused device_del: Device 'x' not found (DeviceNotFound)");
    }

    #[tokio::test]
    async fn a_dropped_command_harms_no_other() {
        let (qmp, _events, mut peer) = Peer::connected().await;
        let dropped = in_time().within(Duration::from_millis(50)).guard(qmp.execute("slow", json!({}))).await;
        assert_eq!(dropped.unwrap_err(), Interrupted::DeadlinePassed);
        let serve = async {
            let slow = peer.command().await;
            let next = peer.command().await;
            peer.answer(&slow, json!("late")).await;
            peer.answer(&next, json!("next")).await;
        };
        let (answer, ()) = tokio::join!(qmp.execute("next", json!({})), serve);
        assert_eq!(answer.unwrap(), json!("next"));
    }

    #[tokio::test]
    async fn an_end_in_the_middle_of_an_answer_ends_all_who_wait() {
        let (qmp, mut events, mut peer) = Peer::connected().await;
        let serve = async {
            let command = peer.command().await;
            peer.send(&format!("{{\"return\": {{}}, \"id\": {}", command["id"])).await;
            drop(peer);
        };
        let (first, second, ()) =
            tokio::join!(qmp.execute("one", json!({})), qmp.execute("two", json!({})), serve);
        for answer in [first, second, qmp.execute("later", json!({})).await] {
            assert_eq!(closed(&answer.unwrap_err()), &Closed::ByQemu);
        }
        assert_eq!(events.recv().await, None);
    }

    #[tokio::test]
    async fn garbage_and_endless_lines_close_the_connection() {
        let (qmp, _events, mut peer) = Peer::connected().await;
        let (answer, ()) = tokio::join!(qmp.execute("x", json!({})), peer.send("\u{1}not json\n"));
        assert!(matches!(closed(&answer.unwrap_err()), Closed::NotQmp(said) if said.contains("not json")));

        let (qmp, _events, mut peer) = Peer::connected().await;
        let flood = async {
            let chunk = vec![b' '; 1 << 20];
            while peer.write.write_all(&chunk).await.is_ok() {}
        };
        let (answer, ()) = tokio::join!(qmp.execute("x", json!({})), flood);
        assert_eq!(closed(&answer.unwrap_err()), &Closed::TooLong);
    }

    #[tokio::test]
    async fn who_does_not_greet_is_not_waited_for_for_ever() {
        let (stream, _silent) = Peer::pair();
        let control = in_time().within(Duration::from_millis(50));
        let error = Qmp::open(stream, &control).await.unwrap_err();
        assert!(matches!(error, QmpError::Interrupted { source: Interrupted::DeadlinePassed }));

        let control = in_time();
        let (stream, mut peer) = Peer::pair();
        peer.send("SSH-2.0-OpenSSH\n").await;
        let error = Qmp::open(stream, &control).await.unwrap_err();
        assert!(matches!(&error, QmpError::Greeting { greeting } if greeting.contains("SSH-2.0")), "{error}");

        let (stream, peer) = Peer::pair();
        drop(peer);
        let error = Qmp::open(stream, &control).await.unwrap_err();
        assert_eq!(closed(&error), &Closed::ByQemu);
    }
}
