//! Two workers, one volume.

use std::time::Duration;

use faulty::Dice;
use oss_server::Fault;

use crate::common::{FLAGS, PART, SOURCE, put_some, seed, stalled};
use crate::support::cases::{shown, shown_by};
use crate::support::{BUCKET, Place, Ran, Run, files, ossvp, populate, server};

#[test]
fn of_two_workers_that_start_at_once_one_fills() {
    let mut dice = Dice::new(seed());
    let races = 20;
    let (mut held, mut late) = (0, 0);
    for race in 0..races {
        let server = server();
        let expected = put_some(&server);
        server.fault(Fault::any().delay(Duration::from_millis(5 + dice.below(30))));
        let place = Place::new();
        let waits = [dice.below(30), dice.below(30)];
        let ran: Vec<Ran> = std::thread::scope(|scope| {
            let workers = waits.map(|ms| {
                let (server, volume) = (&server, place.volume());
                scope.spawn(move || {
                    // not a wait for anything: who comes first is what is drawn
                    std::thread::sleep(Duration::from_millis(ms));
                    populate(server, SOURCE, &volume).args(FLAGS).run()
                })
            });
            workers.into_iter().map(|worker| worker.join().unwrap()).collect()
        });
        let why = format!("race {race}: {ran:?}");
        let filled = ran.iter().filter(|ran| ran.stderr.contains("ossvp: complete: ")).count();
        assert_eq!(filled, 1, "{why}");
        for other in ran.iter().filter(|ran| !ran.stderr.contains("ossvp: complete: ")) {
            match other.code {
                4 => {
                    let said = format!(
                        "another worker holds the volume {}; wait for it, or stop it",
                        place.volume().display()
                    );
                    assert!(other.stderr.contains(&said), "{why}");
                    held += 1;
                }
                0 => {
                    assert!(other.stderr.contains("already complete"), "{why}");
                    late += 1;
                }
                code => panic!("{code}: {why}"),
            }
        }
        assert_eq!(files(&place.volume()), expected, "{why}");
        ossvp().arg("verify").arg(place.volume()).run().ended(0);
    }
    assert!(held > races / 2, "{held} held, {late} late");
    shown(
        PART,
        "two workers are started on one volume at once",
        "one fills it, the other names the volume and ends",
        4,
    );
}

#[test]
fn a_lock_outlives_no_worker() {
    let (server, place) = (server(), Place::new());
    server.put(BUCKET, "data/stalls", "content");
    // a file that another host left says nothing: only a lock does
    std::fs::create_dir_all(place.volume().join(".ossvp")).unwrap();
    std::fs::write(place.volume().join(".ossvp/lock"), "pid 1 on another-host").unwrap();
    for _ in 0..5 {
        server.fault(Fault::get("data/stalls").stall_forever_after(1));
        let mut holder = stalled(&server, &place.volume(), &[]);
        populate(&server, SOURCE, &place.volume()).run().ended(4).says("another worker holds");
        holder.kill().unwrap();
        holder.wait().unwrap();
        server.clear_faults();
    }
    let ran = populate(&server, SOURCE, &place.volume()).run().ended(0);
    assert_eq!(files(&place.volume())["stalls"], b"content");
    shown_by(
        &ran,
        PART,
        "the worker that held the volume was killed, or a lock file of another host is left",
        "is no obstacle: the lock went with its worker",
    );
}
