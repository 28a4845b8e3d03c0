import { defineConfig } from 'vite'

export default defineConfig({
  base: '/explorer/',
  build: {
    outDir: '../src/headwater/graphql/explorer/static',
    emptyOutDir: true,
    sourcemap: false,
    license: { fileName: 'licenses.md' }, // the packages in the bundle ask that their licenses go with it
    chunkSizeWarningLimit: 8_000, // kB: the editor is one large chunk, and the server gives it away once a release
  },
})
