//! Activation checkpointing (Chen et al., 2016): a pass keeps only each block's input and computes the block again when
//! its gradient is asked for. A third more work for a memory that hardly grows with depth.

use crate::{
    Result,
    fused::backward,
    network::{Dit, Shared},
};
use tch::Tensor;

/// What the backward pass of a recomputed forward pass needs.
pub struct Tape {
    embedded: (Tensor, Shared), // with graph to the embedding layers
    shared: Shared,             // leaves that stand in for it in blocks and head
    inputs: Vec<Tensor>,        // (B, N, D) of each block, without graph
    last: Tensor,               // the head's input, a leaf
}

/// [`Dit::forward`] whose graph ends before the head. After the loss has gone backward to it, [`Tape::backward`] takes the
/// gradients on to the blocks and the embedding.
pub fn forward(network: &Dit, x: &Tensor, t: &[f64], text: &Tensor) -> (Tensor, Tape) {
    let (tokens, common) = network.embed(x, t, text);
    let shared = Shared { time: leaf(&common.time), modulation: leaf(&common.modulation), text: leaf(&common.text) };
    let mut inputs = Vec::with_capacity(network.depth());
    let mut h = tokens.detach();
    {
        let _guard = tch::no_grad_guard();
        for index in 0..network.depth() {
            let next = network.block(index, &h, &shared);
            inputs.push(std::mem::replace(&mut h, next));
        }
    }
    let last = leaf(&h);
    let output = network.head(&last, &shared);
    (output, Tape { embedded: (tokens, common), shared, inputs, last })
}

impl Tape {
    /// Computes the blocks again from last to first, each under `pass`, and adds to the parameters' gradients.
    ///
    /// # Errors
    /// What libtorch refuses: out of memory, in the main.
    pub fn backward(self, network: &Dit, pass: impl Fn(&dyn Fn() -> Tensor) -> Result<Tensor>) -> Result<()> {
        let mut gradient = self.last.grad();
        drop(self.last);
        for (index, input) in self.inputs.into_iter().enumerate().rev() {
            let input = leaf(&input);
            let output = pass(&|| network.block(index, &input, &self.shared))?;
            backward(&[output], &[gradient])?;
            gradient = input.grad();
        }
        let (tokens, common) = self.embedded;
        let Shared { time, modulation, text } = self.shared;
        backward(
            &[tokens, common.time, common.modulation, common.text],
            &[gradient, time.grad(), modulation.grad(), text.grad()],
        )
    }
}

fn leaf(tensor: &Tensor) -> Tensor {
    tensor.detach().set_requires_grad(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fused::Autocast;
    use hdd_protocol::Architecture;
    use tch::{Device, Kind, nn::VarStore};

    /// Parameters, drawn anew so that no gradient is zero by initialisation, and their gradients of the same loss.
    fn gradients(recomputed: bool, half: Option<Kind>) -> (Vec<Tensor>, f64) {
        let store = VarStore::new(Device::Cpu);
        let shape =
            Architecture { channels: 3, size: 8, text_width: 6, text_length: 3, ..Architecture::new(32, 3, 4, 2) };
        let network = Dit::new(&store.root(), &shape);
        let mut params: Vec<(String, Tensor)> = store.variables().into_iter().collect();
        params.sort_by(|a, b| a.0.cmp(&b.0));
        for (i, (_, param)) in params.iter().enumerate() {
            let values = crate::fused::normal(&param.size(), i as u64).unwrap() * 0.2;
            tch::no_grad(|| param.shallow_clone().copy_(&values));
        }
        let (x, text) =
            (crate::fused::normal(&[5, 3, 8, 8], 100).unwrap(), crate::fused::normal(&[5, 3, 6], 101).unwrap());
        let text = text + network.null_text(5);
        let times = [0.1, 0.3, 0.5, 0.7, 0.9];
        let guard = || half.map(|kind| Autocast::new(Device::Cpu, kind).unwrap());
        let loss = if recomputed {
            let (output, tape) = {
                let _guard = guard();
                forward(&network, &x, &times, &text)
            };
            let loss = output.square().mean(Kind::Float);
            loss.backward();
            let block = |block: &dyn Fn() -> Tensor| {
                let _guard = guard();
                Ok(block())
            };
            tape.backward(&network, block).unwrap();
            loss
        } else {
            let output = {
                let _guard = guard();
                network.forward(&x, &times, &text)
            };
            let loss = output.square().mean(Kind::Float);
            loss.backward();
            loss
        };
        (params.into_iter().map(|(_, param)| param.grad()).collect(), loss.double_value(&[]))
    }

    #[test]
    fn gradients_are_those_of_the_plain_pass() {
        for half in [None, Some(Kind::BFloat16)] {
            let ((plain, loss), (recomputed, same)) = (gradients(false, half), gradients(true, half));
            assert_eq!(loss, same);
            for (a, b) in plain.iter().zip(&recomputed) {
                assert!(a.abs().max().double_value(&[]) > 0.0, "a gradient that is zero proves nothing");
                assert_eq!(a, b, "{half:?}");
            }
        }
    }
}
