//! Tiny tasks that can be learnt, since labels depend on words: four in GLUE's file layout, two of a lab's own.

use std::fs;
use std::path::Path;

use crate::stream::Stream;

/// Rows of each training file. Dev files have a quarter as many.
pub const ROWS: usize = 240;

const GOOD: [&str; 12] =
    ["good", "great", "fine", "happy", "bright", "lovely", "kind", "warm", "calm", "sweet", "brave", "clever"];
const BAD: [&str; 12] =
    ["bad", "poor", "sad", "dark", "cruel", "cold", "ugly", "bitter", "weak", "dull", "mean", "foolish"];
const OTHER: [&str; 96] = [
    "the", "a", "an", "this", "that", "one", "two", "three", "of", "in", "on", "under", "over", "near", "with", "by",
    "and", "or", "but", "not", "very", "quite", "often", "never", "always", "he", "she", "it", "we", "they", "you",
    "is", "was", "are", "were", "be", "has", "had", "river", "mountain", "city", "house", "garden", "window", "door",
    "table", "book", "letter", "story", "song", "film", "teacher", "doctor", "farmer", "child", "woman", "man",
    "friend", "dog", "cat", "horse", "bird", "fish", "tree", "flower", "apple", "bread", "water", "wine", "road",
    "bridge", "ship", "train", "station", "morning", "evening", "winter", "summer", "walk", "talk", "play", "work",
    "open", "close", "carry", "write", "read", "sing", "watch", "paint", "build", "cook", "wait", "visit", "return",
    "begin",
];
const PIECES: [&str; 14] =
    ["##s", "##ed", "##ing", "##er", "##ly", "##ness", "##est", "##y", "##e", "##t", "##a", "##n", "##ful", "##less"];
const SIGNS: [&str; 8] = [".", ",", "!", "?", "\"", "'", "-", ";"];
const ENDINGS: [&str; 5] = ["", "", "s", "ed", "ing"];

/// All tokens, special ones first.
pub(crate) fn vocabulary() -> Vec<&'static str> {
    let special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];
    [&special[..], &GOOD, &BAD, &OTHER, &PIECES, &SIGNS].concat()
}

/// Writes GLUE's folders of CoLA, MRPC, STS-B and RTE to `glue`, and the files of two tasks of one's own, `mood.tsv`,
/// `warmth-train.tsv` and `warmth-dev.tsv`, to `own`.
pub fn write_tasks(glue: &Path, own: &Path) {
    let mut random = Stream::new(7);
    for (split, rows) in [("train", ROWS), ("dev", ROWS / 4)] {
        let mut file = |folder: &str, header: &str, row: &dyn Fn(&mut Stream, usize) -> String| {
            write(&glue.join(folder).join(format!("{split}.tsv")), header, rows, &mut random, row);
        };
        file("CoLA", "", &|r, _| {
            let label = r.below(2);
            format!("ab12\t{label}\t{}\t{}", if label == 0 { "*" } else { "" }, sentence(r, 2 * label, 2))
        });
        file("MRPC", "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String", &|r, i| {
            let label = r.below(2);
            format!("{label}\t{i}\t{i}1\t{}\t{}", sentence(r, 0, 0), sentence(r, 2 * label, 2))
        });
        let header = "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore";
        file("STS-B", header, &|r, i| {
            let score = r.below(6);
            let (first, second) = (sentence(r, 0, 0), sentence(r, score, 5));
            format!("{i}\tmain\tx\t2012\t{i}\tnone\tnone\t{first}\t{second}\t{score}.000")
        });
        file("RTE", "index\tsentence1\tsentence2\tlabel", &|r, i| {
            let entailed = r.below(2);
            let label = ["not_entailment", "entailment"][entailed];
            format!("{i}\t{}\t{}\t{label}", sentence(r, 0, 0), sentence(r, 2 * entailed, 2))
        });
    }
    // Test files of three of the tasks, without labels.
    let mut test = |folder: &str, header: &str, row: &dyn Fn(&mut Stream, usize) -> String| {
        write(&glue.join(folder).join("test.tsv"), header, ROWS / 4, &mut random, row);
    };
    test("CoLA", "index\tsentence", &|r, i| format!("{i}\t{}", sentence(r, 1, 2)));
    test("RTE", "index\tsentence1\tsentence2", &|r, i| format!("{i}\t{}\t{}", sentence(r, 0, 0), sentence(r, 1, 2)));
    test("STS-B", "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2", &|r, i| {
        format!("{i}\tmain\tx\t2012\t{i}\tnone\tnone\t{}\t{}", sentence(r, 0, 0), sentence(r, 3, 5))
    });
    test("WNLI", "index\tsentence1\tsentence2", &|r, i| format!("{i}\t{}\t{}", sentence(r, 0, 0), sentence(r, 0, 0)));
    // Its dev split is a share of the one file.
    write(&own.join("mood.tsv"), "", ROWS * 5 / 4, &mut random, &|r, i| {
        let good = r.below(5);
        format!("{i}\t{}\t{}", good as f64 * 2.0 - 4.0, sentence(r, good, 4))
    });
    for (split, rows) in [("train", ROWS), ("dev", ROWS / 4)] {
        let path = own.join(format!("warmth-{split}.tsv"));
        write(&path, "degree\ttext\tnote", rows, &mut random, &|r, _| {
            let good = r.below(5);
            format!("{}\t{}\tunused", good as f64 * 2.0 - 4.0, sentence(r, good, 4))
        });
    }
}

/// Rows of the training files of [`write_all_of_glue`]. Dev and test files have a quarter as many.
pub const FEW_ROWS: usize = 32;

/// Writes to `glue` what [`write_tasks`] leaves out, so that all files are there, in their official columns: SST-2, QQP (with
/// a row that lacks columns), MNLI, QNLI and WNLI, the test files of MRPC, and AX.
pub fn write_all_of_glue(glue: &Path) {
    let mut random = Stream::new(8);
    let mut file = |name: &str, header: &str, row: &dyn Fn(&mut Stream, usize) -> String| {
        let rows = if name.ends_with("train.tsv") { FEW_ROWS } else { FEW_ROWS / 4 };
        write(&glue.join(name), header, rows, &mut random, row);
    };
    let pair = |r: &mut Stream, good: usize| format!("{}\t{}", sentence(r, 0, 0), sentence(r, good, 2));
    for split in ["train", "dev"] {
        file(&format!("SST-2/{split}.tsv"), "sentence\tlabel", &|r, i| {
            format!("{}\t{}", sentence(r, 2 * (i % 2), 2), i % 2)
        });
        file(&format!("QQP/{split}.tsv"), "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate", &|r, i| {
            let whole = format!("{i}\t{i}1\t{i}2\t{}\t{}", pair(r, 2 * (i % 2)), i % 2);
            if i == 3 { format!("{i}\t{i}1\t{i}2\twho is it") } else { whole }
        });
        for (folder, header, labels) in [
            ("QNLI", "index\tquestion\tsentence\tlabel", ["not_entailment", "entailment"]),
            ("WNLI", "index\tsentence1\tsentence2\tlabel", ["0", "1"]),
        ] {
            let row = |r: &mut Stream, i: usize| format!("{i}\t{}\t{}", pair(r, 2 * (i % 2)), labels[i % 2]);
            file(&format!("{folder}/{split}.tsv"), header, &row);
        }
    }
    // MNLI's files differ in how many annotators' labels there are; the gold one is the last column of all.
    let labels = ["contradiction", "entailment", "neutral"];
    let texts =
        |r: &mut Stream, i: usize| format!("{i}\t{i}7\t{i}7n\tletters\t( a )\t( b )\t(A a)\t(B b)\t{}", pair(r, i % 3));
    let header = "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse\t\
                  sentence2_parse\tsentence1\tsentence2";
    for (split, annotators) in
        [("train", 1), ("dev_matched", 5), ("dev_mismatched", 5), ("test_matched", 0), ("test_mismatched", 0)]
    {
        let own: String = (1..=annotators).map(|i| format!("\tlabel{i}")).collect();
        let header = if annotators == 0 { header.to_owned() } else { format!("{header}{own}\tgold_label") };
        file(&format!("MNLI/{split}.tsv"), &header, &|r, i| {
            let said: String = (0..annotators).map(|j| format!("\t{}", labels[(i + j) % 3])).collect();
            let gold = if annotators == 0 { String::new() } else { format!("\t{}", labels[i % 3]) };
            texts(r, i) + &said + &gold
        });
    }
    file("SST-2/test.tsv", "index\tsentence", &|r, i| format!("{i}\t{}", sentence(r, 1, 2)));
    let mrpc = "index\t#1 ID\t#2 ID\t#1 String\t#2 String";
    file("MRPC/test.tsv", mrpc, &|r, i| format!("{i}\t{i}1\t{i}2\t{}", pair(r, 1)));
    file("QQP/test.tsv", "id\tquestion1\tquestion2", &|r, i| format!("{i}\t{}", pair(r, 1)));
    file("QNLI/test.tsv", "index\tquestion\tsentence", &|r, i| format!("{i}\t{}", pair(r, 1)));
    file("diagnostic/diagnostic.tsv", "index\tsentence1\tsentence2", &|r, i| format!("{i}\t{}", pair(r, 1)));
}

fn write(path: &Path, header: &str, rows: usize, random: &mut Stream, row: &dyn Fn(&mut Stream, usize) -> String) {
    let lines = (0..rows).map(|i| row(random, i));
    let header = (!header.is_empty()).then(|| header.to_owned());
    let text: String = header.into_iter().chain(lines).flat_map(|line| [line, "\n".to_owned()]).collect();
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

/// A sentence of some length with `telling` telling words, `good` of which are good ones.
fn sentence(random: &mut Stream, good: usize, telling: usize) -> String {
    let mut words: Vec<String> =
        (0..3 + random.below(8)).map(|_| format!("{}{}", random.pick(&OTHER), random.pick(&ENDINGS))).collect();
    for i in 0..telling {
        let word = random.pick(if i < good { &GOOD } else { &BAD }).to_owned();
        words.insert(random.below(words.len() + 1), word);
    }
    words.join(" ") + random.pick(&SIGNS)
}
