"""Pictures: where they lie, what is made of them, and which of them may be learned from.

    open_source → load_images → assign_roles → write_manifest

`sources` lists them, `decode` reads one, `cache` keeps all of them decoded, `roles` draws who is a member, and
`manifest` puts it on record.
"""
