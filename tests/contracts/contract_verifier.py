"""A verifier function for the component ``callable``."""


def brightness(images, condition):
    return images.float().flatten(1).mean(1)
