#![allow(clippy::all)]
use hdd_expert_runtime::{data, *};
use hdd_protocol::*;
use hdd_router_service::*;
use std::time::Instant;
use tch::{Device, Tensor};
fn arg<T: std::str::FromStr>(name: &str, default: T) -> T {
    let a: Vec<String> = std::env::args().collect();
    a.iter()
        .position(|x| x == &format!("--{name}"))
        .and_then(|i| a.get(i + 1))
        .and_then(|v| v.parse().ok())
        .unwrap_or(default)
}
fn means(p: &Picture) -> Vec<f32> {
    let mut out = vec![0f32; 192];
    for y in 0..32 {
        for x in 0..32 {
            for c in 0..3 {
                out[((y / 4) * 8 + x / 4) * 3 + c] += p.rgb[(y * 32 + x) * 3 + c] as f32 / 16.0;
            }
        }
    }
    out
}
fn main() {
    keep_pages();
    tch::set_num_threads(arg("threads", 1));
    let images = data::emoji32().unwrap();
    let charter = data::emoji_charter(PublicKey::from_bytes([0; 32]), 1).unwrap();
    let labels = data::assign(&data::features(&charter.extractor, &images).unwrap(), &charter.centroids);
    let (held, kept): (Vec<usize>, Vec<usize>) = (0..images.len()).partition(|&i| data::held_out(&images.names[i]));
    let ex = |rows: &[usize]| {
        let im = images.select(rows);
        RouterExamples {
            latents: im.tensor(Device::Cpu).unwrap(),
            text: data::encode(&charter.text, &im.captions, Device::Cpu).unwrap(),
            labels: Tensor::from_slice(&rows.iter().map(|&i| labels[i] as i64).collect::<Vec<_>>()),
        }
    };
    let (k, h) = (ex(&kept), ex(&held));
    let mut r = charter.router.clone();
    r.steps = arg("steps", 400);
    r.patch = arg("patch", 8);
    r.width = arg("width", 96);
    r.depth = arg("depth", 2);
    r.learning_rate = arg("lr", 1e-3);
    r.batch = arg("batch", 128);
    let router = Router::new(&r, [3, 32], 64, 4, 0, Device::Cpu);
    let t0 = Instant::now();
    train_router(&router, &r, &k, 0, |_, _| true).unwrap();
    println!(
        "steps {} patch {} lr {} : {:.0}s train {:.3?} held {:.3?}",
        r.steps,
        r.patch,
        r.learning_rate,
        t0.elapsed().as_secs_f64(),
        router.accuracy(&k, true).unwrap().per_bin,
        router.accuracy(&h, true).unwrap().per_bin
    );
    let dir: String = arg("experts", String::new());
    if dir.is_empty() {
        return;
    }
    let members = (0..4)
        .map(|c| {
            let cp =
                latest_checkpoint(std::path::Path::new(&format!("{dir}/cluster{c}/experts/cluster{c}/checkpoints")))
                    .unwrap()
                    .unwrap();
            Member {
                manifest: Digest::of(&[c as u8]),
                expert: Expert::load(&cp.config.spec, &cp.model(), Device::Cpu).unwrap(),
            }
        })
        .collect();
    let ens = Ensemble { router, members, clamp: arg("clamp", 1.2), paper_clamp: 5.0 };
    let prompts: Vec<String> =
        std::fs::read_to_string("/work/main/deploy/demo-prompts.txt").unwrap().lines().map(|s| s.to_string()).collect();
    let all: Vec<Vec<f32>> = (0..images.len()).map(|i| means(&images.picture(i))).collect();
    for sel in [ExpertSelection::Top1, ExpertSelection::TopK(2)] {
        let mut near = vec![];
        for p in &prompts {
            let n = 4;
            let text = data::encode(&charter.text, &[p], Device::Cpu).unwrap().expand([n, -1, -1], false);
            let cond = Condition {
                text: Some(text),
                guidance: Some(Guidance { scale: vec![arg("guidance", 3.0); n as usize], negative: None }),
            };
            let f = ens.fusion(sel, Conversion::DEFAULT, None, n as usize);
            let x = sampler::sample(
                &f,
                sampler::noise(&[1, 2, 3, 4], [3, 32, 32], Device::Cpu),
                &cond,
                &sampler::time_grid(arg("ssteps", 30), arg("shift", 1.0)),
                Solver::Euler,
                |_| std::ops::ControlFlow::Continue(()),
            )
            .unwrap()
            .unwrap();
            let name = p.split_once(' ').unwrap().1;
            let mut c = 0;
            for pic in sampler::to_pictures(&x).unwrap() {
                let m = means(&pic);
                let d = |v: &Vec<f32>| v.iter().zip(&m).map(|(a, b)| (a - b).powi(2)).sum::<f32>();
                let own =
                    (0..images.len()).filter(|&j| images.names[j] == name).map(|j| d(&all[j])).fold(f32::MAX, f32::min);
                if all.iter().filter(|v| d(v) < own).count() < 3235 / 20 {
                    c += 1
                }
            }
            near.push(c);
        }
        println!("{sel:?} {:?} {}", near, near.iter().sum::<i32>());
    }
}
