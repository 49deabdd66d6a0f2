"""Guest kernels and images: built from Debian packages, kept by the hash of their inputs.

``store`` says what there is and what is selected (import-light); ``build``
makes it.  The other modules each know one format or one part of the guest.
"""
