//! `bam fetch` from a server on this machine that plays Hugging Face's hub or GLUE's: whole, cut off, damaged, refused, absent.
//! And what a recipe makes of what was fetched.

#![allow(clippy::unwrap_used, reason = "what a test cannot do without has failed when it is not there")]

use std::fs;
use std::net::TcpListener;
use std::path::PathBuf;

use bam_tests::{
    Answer, Bam, COMMIT, FakeHub, Finished, Recipe, Request, Server, Workplace, keep_tokenizer_json_alone,
};

const NAME: &str = "lab/tiny-bert";
const WEIGHTS: &str = "model.safetensors";

/// A workplace, the model that its encoder would be on the hub, and a hub that answers as `change` wants it.
fn hub(change: impl Fn(&Request, usize, Answer) -> Answer + Send + 'static) -> (Workplace, Server) {
    let place = Workplace::new();
    let fake = FakeHub::of(NAME, &place.at("encoder"));
    let server = Server::start(move |request, before| change(request, before, fake.answer(&request.path)));
    (place, server)
}

fn command<'a>(place: &Workplace, server: &Server, arguments: impl IntoIterator<Item = &'a str>) -> Bam {
    place.bam(arguments).env("HF_ENDPOINT", server.url()).env("HF_HOME", place.at("hf"))
}

fn fetch(place: &Workplace, server: &Server) -> Finished {
    command(place, server, ["fetch", "model", NAME]).finish()
}

fn snapshot(place: &Workplace) -> PathBuf {
    place.at("hf/hub/models--lab--tiny-bert/snapshots").join(COMMIT)
}

/// All files are there as they are on the hub, and nothing half-written is.
fn assert_whole(place: &Workplace) {
    for file in ["config.json", "vocab.txt", WEIGHTS] {
        let link = snapshot(place).join(file);
        assert_eq!(fs::read(&link).unwrap(), fs::read(place.at("encoder").join(file)).unwrap(), "{file}");
        assert!(fs::read_link(&link).unwrap().starts_with("../../blobs"), "{file} is no link");
    }
    assert_eq!(fs::read_to_string(place.at("hf/hub/models--lab--tiny-bert/refs/main")).unwrap(), COMMIT);
    assert_eq!(left_over(place), Vec::<String>::new());
}

/// Files that were not finished.
fn left_over(place: &Workplace) -> Vec<String> {
    let blobs = fs::read_dir(place.at("hf/hub/models--lab--tiny-bert/blobs"));
    let names = blobs.into_iter().flatten().map(|e| e.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.ends_with(".incomplete")).collect()
}

fn of_weights(server: &Server) -> Vec<Request> {
    server.requests().into_iter().filter(|r| r.path.ends_with(WEIGHTS)).collect()
}

#[test]
fn a_model_comes_whole_with_the_token_and_is_then_a_name_in_recipes() {
    let (place, server) = hub(|_, _, answer| answer);
    let done = command(&place, &server, ["fetch", "model", NAME]).env("HF_TOKEN", "hf_secret").expect(0);
    assert!(done.stdout.contains("2 layers of width") && done.stdout.contains("model.path=lab/tiny-bert"), "{done}");
    assert_whole(&place);
    let bearers: Vec<_> = server.requests().into_iter().map(|r| r.headers.get("authorization").cloned()).collect();
    assert!(bearers.len() >= 4 && bearers.iter().all(|b| b.as_deref() == Some("Bearer hf_secret")), "{bearers:?}");
    let requests = of_weights(&server).len();
    fetch(&place, &server).expect(0);
    assert_eq!(of_weights(&server).len(), requests, "what is there is not fetched again");

    // Found by its name, in the file and in an override, and written down as a directory.
    place.recipe("recipe.yaml", &Recipe::of(&["cola"]));
    place.edit("recipe.yaml", |text| text.replace("path: encoder", &format!("path: {NAME}")));
    let here = snapshot(&place).display().to_string();
    assert!(command(&place, &server, ["plan", "recipe.yaml"]).expect(0).stdout.contains(&here));
    let run = ["run", "recipe.yaml", "--stages", "prepare"];
    command(&place, &server, run).expect(0);
    let resolved = fs::read_to_string(place.at("runs/tiny/config.yaml")).unwrap();
    assert!(resolved.contains(&format!("path: {here}\n")), "{resolved}");
    // A directory of that name comes first.
    fs::create_dir(place.at("lab")).unwrap();
    fs::rename(place.at("encoder"), place.at("lab/tiny-bert")).unwrap();
    let beside = format!("{}: 2 layers", place.at("lab/tiny-bert").display());
    assert!(command(&place, &server, ["plan", "recipe.yaml"]).expect(0).stdout.contains(&beside));
    fs::rename(place.at("lab/tiny-bert"), place.at("encoder")).unwrap();
    // Taken to another machine.
    let out = ["fetch", "model", NAME, "--to", "taken"];
    command(&place, &server, out).env("HF_HUB_OFFLINE", "1").expect(0);
    assert!(!fs::symlink_metadata(place.at("taken/config.json")).unwrap().is_symlink());
    command(&place, &server, ["plan", "recipe.yaml", "-o", "model.path=taken"]).expect(0);
    command(&place, &server, out).finish().expect_error(2, &["--to taken", "there already"]);
}

#[test]
fn a_model_that_is_not_there_is_an_error_that_says_how_to_fetch_it() {
    let place = Workplace::new();
    place.recipe("recipe.yaml", &Recipe::of(&["cola"]));
    let plan = |path: &str| {
        let path = format!("model.path={path}");
        place.bam(["plan", "recipe.yaml", "-o", &path]).env("HF_HOME", place.at("hf")).finish()
    };
    let cache = place.at("hf/hub").display().to_string();
    plan("bert-large-uncased").expect_error(3, &["model.path must be", &cache, "bam fetch model bert-large-uncased"]);
    plan("google/bert").expect_error(3, &["bam fetch model google/bert"]);
    plan("/models/bert-base-uncased")
        .expect_error(3, &["bam fetch model bert-base-uncased --to /models/bert-base-uncased"]);
}

#[test]
fn a_cut_connection_is_gone_on_with() {
    let (place, server) = hub(|request, before, answer| {
        // Twice in the middle.
        let cut_after = (request.path.ends_with(WEIGHTS) && before < 2).then_some(5_000);
        Answer { cut_after, ..answer }
    });
    fetch(&place, &server).expect(0);
    assert_whole(&place);
    let ranges: Vec<_> = of_weights(&server).into_iter().map(|r| r.headers.get("range").cloned()).collect();
    assert_eq!(ranges, [None, Some("bytes=5000-".to_owned()), Some("bytes=10000-".to_owned())]);
}

#[test]
fn what_an_earlier_try_left_is_gone_on_with_even_if_it_is_of_another_file() {
    let (place, server) = hub(|_, _, answer| answer);
    let whole = fs::read(place.at("encoder").join(WEIGHTS)).unwrap();
    let sum = bam_tests::sha256(&place.at("encoder").join(WEIGHTS));
    let blobs = place.at("hf/hub/models--lab--tiny-bert/blobs");
    fs::create_dir_all(&blobs).unwrap();
    let part = blobs.join(format!("{sum}.incomplete"));
    fs::write(&part, &whole[..7_000]).unwrap();
    fetch(&place, &server).expect(0);
    assert_whole(&place);
    let first = of_weights(&server)[0].headers.get("range").cloned();
    assert_eq!(first.as_deref(), Some("bytes=7000-"));
    for left in [vec![7; 6_000], vec![7; whole.len() + 9]] {
        fs::remove_file(blobs.join(&sum)).unwrap();
        fs::write(&part, left).unwrap();
        fetch(&place, &server).expect(0);
        assert_whole(&place);
    }
}

#[test]
fn a_server_that_sends_no_parts_sends_the_whole_again() {
    let (place, server) = hub(|request, before, answer| {
        let cut_after = (request.path.ends_with(WEIGHTS) && before == 0).then_some(5_000);
        Answer { in_parts: false, cut_after, ..answer }
    });
    fetch(&place, &server).expect(0);
    assert_whole(&place);
}

#[test]
fn a_connection_that_is_cut_for_good_leaves_what_came_for_the_next_try() {
    let (place, server) = hub(|request, before, mut answer| {
        if request.path.ends_with(WEIGHTS) {
            answer = Answer { cut_after: Some(if before == 0 { 5_000 } else { 0 }), ..answer };
        }
        answer
    });
    fetch(&place, &server)
        .expect_error(1, &[WEIGHTS, "5000 of", "5 more tries", "the same command goes on from there"]);
    assert_eq!(left_over(&place).len(), 1);
    assert!(!snapshot(&place).join(WEIGHTS).exists());
}

#[test]
fn what_is_not_what_was_promised_is_refused() {
    let (place, server) = hub(|request, _, mut answer| {
        if request.path.ends_with(WEIGHTS) {
            answer.body[5_000] ^= 1;
        }
        answer
    });
    fetch(&place, &server).expect_error(3, &[WEIGHTS, "has SHA-256", "instead of", "damaged on the way"]);
    assert_eq!(left_over(&place), Vec::<String>::new());
    assert!(!snapshot(&place).join(WEIGHTS).exists());
    let (place, server) = hub(|request, _, mut answer| {
        if request.path.ends_with("vocab.txt") {
            answer.body[3] ^= 1;
        }
        answer
    });
    fetch(&place, &server).expect_error(3, &["vocab.txt", "has git's sum"]);
    let (place, server) = hub(|request, _, mut answer| {
        if request.path.ends_with(WEIGHTS) {
            answer.body.pop();
        }
        answer
    });
    fetch(&place, &server).expect_error(3, &[WEIGHTS, "has size"]);
    assert!(!place.at("hf/hub/models--lab--tiny-bert/refs/main").exists());
}

#[test]
fn refusals_say_what_to_do() {
    let refused = |status: u16| {
        let (place, server) = hub(move |_, _, _| Answer::status(status));
        fetch(&place, &server)
    };
    refused(401).expect_error(1, &["the server says 401", "HF_TOKEN", "private, gated or misspelt"]);
    refused(403).expect_error(1, &["the server says 403", "HF_TOKEN"]);
    refused(404).expect_error(1, &["404", "is it 'lab/tiny-bert'?", "HF_ENDPOINT"]);
    refused(503).expect_error(1, &["503", "try again later"]);
    let (place, server) = hub(|_, _, _| Answer::file(b"<html>log in</html>"));
    fetch(&place, &server).expect_error(3, &["is not what the hub says of a model", "HF_ENDPOINT"]);
    command(&place, &server, ["fetch", "model", "../up"]).finish().expect_error(2, &["is no name of a model"]);
}

#[test]
fn a_token_does_not_go_where_the_hub_passes_on_to() {
    let place = Workplace::new();
    let fake = FakeHub::of(NAME, &place.at("encoder"));
    let store = {
        let fake = fake.clone();
        Server::start(move |request, _| fake.answer(&request.path))
    };
    // The same machine under another name.
    let elsewhere = store.url().replace("127.0.0.1", "localhost");
    let server = Server::start(move |request, _| match request.path.ends_with(WEIGHTS) {
        true => Answer { status: 302, location: Some(format!("{elsewhere}{}", request.path)), ..Answer::default() },
        false => fake.answer(&request.path),
    });
    command(&place, &server, ["fetch", "model", NAME]).env("HF_TOKEN", "hf_secret").expect(0);
    assert_whole(&place);
    let passed_on = store.requests();
    assert!(!passed_on.is_empty() && passed_on.iter().all(|r| !r.headers.contains_key("authorization")));
}

#[test]
fn a_model_that_was_renamed_comes_under_its_old_name() {
    let place = Workplace::new();
    let fake = FakeHub::of(NAME, &place.at("encoder"));
    let server = Server::start(move |request, _| match request.path.contains(NAME) {
        true => fake.answer(&request.path),
        false => {
            let location = Some(request.path.replacen("/tiny/", "/lab/tiny-bert/", 1));
            Answer { status: 307, location, ..Answer::default() }
        }
    });
    command(&place, &server, ["fetch", "model", "tiny"]).env("HF_TOKEN", "hf_secret").expect(0);
    assert!(place.at("hf/hub/models--tiny/snapshots").join(COMMIT).join(WEIGHTS).exists());
}

#[test]
fn a_model_that_transformers_5_saved_is_fetched_without_vocab_txt() {
    let place = Workplace::new();
    keep_tokenizer_json_alone(&place.at("encoder"));
    let fake = FakeHub::of(NAME, &place.at("encoder"));
    let server = Server::start(move |request, _| fake.answer(&request.path));
    fetch(&place, &server).expect(0);
    // Another kind of tokenizer is another kind of model.
    place.edit("encoder/tokenizer.json", |text| text.replace(r#""type":"WordPiece","unk"#, r#""type":"BPE","unk"#));
    let fake = FakeHub::of(NAME, &place.at("encoder"));
    let server = Server::start(move |request, _| fake.answer(&request.path));
    fs::remove_dir_all(place.at("hf")).unwrap();
    fetch(&place, &server).expect_error(3, &["tokenizer.json", "of kind BPE"]);
    assert!(of_weights(&server).is_empty());
}

#[test]
fn a_model_that_is_no_bert_is_refused_before_its_weights_come() {
    let place = Workplace::new();
    let mut fake = FakeHub::of(NAME, &place.at("encoder"));
    fake.edit(|about| about["siblings"].as_array_mut().unwrap().retain(|f| f["rfilename"] != "vocab.txt"));
    let server = Server::start(move |request, _| fake.answer(&request.path));
    fetch(&place, &server).expect_error(3, &["vocab.txt", "bam trains BERT encoders"]);
    assert!(of_weights(&server).is_empty());
}

/// A port that nobody listens on.
fn nobody() -> String {
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    format!("http://{address}")
}

#[test]
fn without_internet_it_says_what_to_run_where_and_how_to_copy() {
    let place = Workplace::new();
    let words = ["cannot reach http://127.0.0.1", "bam fetch model bert-base-uncased --to", "rsync -a", "HTTPS_PROXY"];
    let model = place.bam(["fetch", "model", "bert-base-uncased"]).env("HF_HOME", place.at("hf"));
    model.env("HF_ENDPOINT", nobody()).finish().expect_error(1, &words);
    let offline = place.bam(["fetch", "model", "bert-base-uncased"]).env("HF_HOME", place.at("hf"));
    offline.env("HF_HUB_OFFLINE", "1").finish().expect_error(1, &["HF_HUB_OFFLINE", "rsync -a"]);
    let words = ["cannot reach http://127.0.0.1", "bam fetch glue --dir new", "rsync -a new/", "--from"];
    place.bam(["fetch", "glue", "--dir", "new", "--from", &nobody()]).finish().expect_error(1, &words);
    let by_variable = place.bam(["fetch", "glue", "--dir", "new"]).env("BAM_GLUE_URL", nobody());
    by_variable.finish().expect_error(1, &words);
}

#[test]
fn glue_from_a_server_that_has_other_files_is_refused() {
    let place = Workplace::new();
    let server = Server::start(|request, _| match request.path.as_str() {
        "/glue/data/WNLI.zip" => Answer::file(&[7; 28_999]),
        "/glue/data/RTE.zip" => Answer::file(b"<html>log in</html>"),
        _ => Answer::status(404),
    });
    let fetch =
        |task: &str| place.bam(["fetch", "glue", "--dir", "new", "--task", task, "--from", &server.url()]).finish();
    fetch("wnli").expect_error(
        3,
        &["WNLI.zip", "has SHA-256", "ae0e8e4d16f4d46d4a0a566ec7ecceccfd3fbfaa4a7a4b4e02848c0f2561ac46"],
    );
    fetch("rte").expect_error(3, &["RTE.zip", "has size 19 instead of 697150"]);
    fetch("cola").expect_error(1, &["CoLA.zip", "404", "--from"]);
    fetch("colla").expect_error(2, &["GLUE has no such task", "cola"]);
    assert!(!place.at("new/WNLI").exists());
    // What is there, and is not GLUE's.
    let here = place.bam(["fetch", "glue", "--task", "cola", "--from", &server.url()]).finish();
    here.expect_error(3, &["glue/CoLA", "has 240 rows to train with; GLUE's has 8551", "remove the folder"]);
}
