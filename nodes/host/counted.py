"""Progress of a stage that is one of several."""

from comfy.patcher_extension import WrappersMP


def counted(model, done, total):
    """A clone of the model whose sampling reports its steps as those after `done` of `total` steps."""
    clone = model.clone()

    def sample(executor, noise, latent_image, sampler, sigmas, denoise_mask=None, callback=None, *arguments, **more):
        def report(step, x0, x, steps):
            callback(done + step, x0, x, total)

        return executor(noise, latent_image, sampler, sigmas, denoise_mask, report, *arguments, **more)

    clone.add_wrapper(WrappersMP.OUTER_SAMPLE, sample)
    return clone
